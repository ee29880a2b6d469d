"""Loads and checks an exported network. Needs JAX, but neither Flax nor the training code."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
from imta_jax.errors import UNREADABLE_ARCHIVE, InputError, UserError
from imta_jax.evaluation.operating_points import OperatingPoint, best_within_budget
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.staged import (
    StagedNetwork,
    StagesAndWeights,
    StageState,
    Weights,
)
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export import golden
from imta_jax.inference.export.exit_rule import read_rule
from imta_jax.inference.export.machine_files import (
    has_compiled,
    install_compiled,
    read_profiles,
)
from imta_jax.inference.export.manifest import (
    check_finite,
    check_manifest,
    point_from_manifest,
    transform_from_manifest,
)
from imta_jax.inference.export.programs import read_stages
from imta_jax.nn.pixels import normalize
from imta_jax.runtime.paths import local_path

_log = logging.getLogger(__name__)
_MAX_LOADS = 3  # while another process replaces the folder


@dataclass(frozen=True)
class ExportedClassifier:
    """An exported network, ready to run on this machine.

    Attributes:
      network: network for `AdaptiveClassifier`. It takes uint8 pixels or normalized floats.
      class_names: [K].
      points: thresholds for several budgets, cheapest first.
      transform: how evaluation makes the network's input from an image.
      manifest: content of `manifest.json`: costs and accuracies per exit, versions, origin.
    """

    network: StagedNetwork
    class_names: tuple[str, ...]
    points: tuple[OperatingPoint, ...]
    transform: EvaluationTransform
    manifest: dict[str, Any]

    def point_for(self, budget: float) -> OperatingPoint:
        """Returns the most accurate point that costs at most `budget`.

        Args:
          budget: mean multiply-adds per image, as a fraction of the full network's.

        Raises:
          ValueError: every point costs more.
        """
        return best_within_budget(self.points, budget)

    def adaptive(self, budget: float = 0.5, **options: Any) -> AdaptiveClassifier:
        """Makes a classifier with early exit for a budget.

        Args:
          budget: see `point_for`.
          **options: further arguments of `AdaptiveClassifier`.

        Raises:
          ValueError: every point costs more, or an option is invalid.
        """
        point = self.point_for(budget)
        options = {"exit_fractions": point.validation_exit_fractions, **options}
        return AdaptiveClassifier(self.network, point.thresholds, **options)


def load_exported(
    folder: str | Path, *, check_golden: bool = True, trust_compiled: bool = False
) -> ExportedClassifier:
    """Loads an exported folder after checking all its files.

    Runs no code from it unless `trust_compiled` is True.

    Args:
      folder: written by `export_run` or `export_classifier`.
      check_golden: whether to compute the logits of the folder's synthetic images and compare them
        with the writer's (see `golden`). It compiles the network once, for a batch of 4. A folder
        that passed on this machine before is not checked again.
      trust_compiled: whether to use compiled programs of the folder, if it has some for this
        machine (see `machine_files`). They are machine code: set it only for folders from someone
        you trust.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the folder is not an export, is damaged, is of a newer format or jax, was not
        exported for this platform, or computes other logits than its writer did.
    """
    folder = local_path("folder", folder)
    for _ in range(_MAX_LOADS):
        before = export_folder.identity(folder)
        try:
            exported = _load_checked(folder, check_golden, trust_compiled)
        except (UserError, OSError):
            if export_folder.identity(folder) == before:
                raise
        else:
            if export_folder.identity(folder) == before:
                return exported
        # Another process replaced the folder meanwhile, so that files of two exports were read.
    raise InputError(f"{folder} is replaced again and again; load it when it no longer changes")


def _load_checked(folder: Path, check_golden: bool, trust_compiled: bool) -> ExportedClassifier:
    """Like `load_exported`, unless the folder is replaced meanwhile."""
    manifest = export_folder.read_manifest(folder)
    try:
        _check_versions(folder, manifest)
        if trust_compiled:
            count = install_compiled(folder)
            _log.info("%s: %d compiled programs are used", folder, count)
        elif has_compiled(folder):
            _log.info("%s: compiled programs are not used without trust_compiled", folder)
        exported = _load(folder, manifest)
        path = folder / export_folder.GOLDEN
        if check_golden and path.exists():  # folders of version 1 have none
            golden.check_golden_once(path, exported.network, exported.transform, manifest["dtype"])
        return exported
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        # The checksums are right, so the folder was written like this.
        raise InputError(
            f"{folder} is not valid for this version of imta_jax ({type(error).__name__}: "
            f"{error}); export the network again"
        ) from error


def platform_here() -> str:
    """The default platform of this machine: "cpu", "cuda", "rocm" or "tpu"."""
    client = jax.devices()[0].client
    if jax.default_backend() != "gpu":
        return jax.default_backend()
    return "rocm" if "rocm" in client.platform_version.lower() else "cuda"


def _load(folder: Path, manifest: dict[str, Any]) -> ExportedClassifier:
    count = len(manifest["stages"])
    programs = read_stages([folder / export_folder.program_name(i) for i in range(count)])
    try:
        check_manifest(manifest, programs)
        transform = transform_from_manifest(manifest)
    except InputError as error:
        raise InputError(
            f"{folder / export_folder.MANIFEST}: {error}; export the network again"
        ) from error
    first = _stages_of(folder, manifest["stages"], programs, transform)
    network = StagedNetwork(
        stages=first.stages,
        weights=first.weights,
        image_shape=tuple(manifest["image_shape"]),
        image_dtype=np.dtype(np.uint8),
        macs=np.asarray([row["macs"] for row in manifest["exits"]], np.int64),
        name=manifest["name"],
        transform=transform,
        rule=read_rule(folder, manifest),
        images_last=_images_last(folder, manifest, transform),
        profiles=read_profiles(folder, manifest),
    )
    return ExportedClassifier(
        network,
        tuple(manifest["class_names"]),
        tuple(point_from_manifest(point) for point in manifest["operating_points"]),
        transform,
        manifest,
    )


def _stages_of(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    programs: Sequence[jax.export.Exported],
    transform: EvaluationTransform,
) -> StagesAndWeights:
    """Stages that run exported programs, with their weights."""
    first = functools.partial(_normalize_and_run, programs[0], transform)
    later = (functools.partial(_run, program) for program in programs[1:])
    return StagesAndWeights((first, *later), _read_weights(folder, entries, programs))


def _images_last(
    folder: Path, manifest: dict[str, Any], transform: EvaluationTransform
) -> StagesAndWeights | None:
    """The stages for larger batches on a CPU; None on other devices and in earlier exports."""
    entries = manifest.get("images_last")
    if entries is None or platform_here() != "cpu":
        return None
    paths = [folder / export_folder.images_last_name(i) for i in range(len(entries))]
    return _stages_of(folder, entries, read_stages(paths), transform)


def _run(
    program: jax.export.Exported, weights: Weights, state: StageState
) -> tuple[StageState, Float[Array, "N K"]]:
    return cast(tuple[StageState, jax.Array], program.call(list(weights), tuple(state)))


def _normalize_and_run(
    program: jax.export.Exported,
    transform: EvaluationTransform,
    weights: Weights,
    state: StageState,
) -> tuple[StageState, Float[Array, "N K"]]:
    """The first stage. Its program takes normalized floats."""
    (images,) = state
    if images.dtype == jnp.uint8:
        images = normalize(images, transform.mean, transform.std)
    return _run(program, weights, (images,))


def _read_weights(
    folder: Path, entries: Sequence[dict[str, Any]], programs: Sequence[jax.export.Exported]
) -> tuple[list[jax.Array], ...]:
    """The weights of each stage on the device. Stages share arrays of the same name."""
    path = folder / export_folder.WEIGHTS
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE_ARCHIVE as error:
        raise InputError(f"{path} cannot be read ({error}); export the network again") from error
    checked: dict[str, np.ndarray] = {}
    for stage, program in zip(entries, programs, strict=True):
        (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        for name, aval in zip(stage["weights"], expected, strict=True):
            if name in checked:
                continue
            array = arrays[name]
            if (scale := export_folder.scale_name(name)) in arrays:
                array = array.astype(np.float32) * arrays[scale]
            # NumPy's files have no bfloat16: its bits are stored as uint16.
            array = array.view(jnp.bfloat16) if aval.dtype == jnp.bfloat16 else array
            if (array.shape, array.dtype) != (aval.shape, aval.dtype):
                raise InputError(
                    f"{path}: {name} is {array.dtype} {array.shape}; its program expects "
                    f"{aval.dtype} {aval.shape}; export the network again"
                )
            check_finite(name, array, str(path))
            checked[name] = array
    on_device = jax.device_put(checked)  # `jnp.asarray` would compile a program per shape
    return tuple([on_device[name] for name in stage["weights"]] for stage in entries)


def _check_versions(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks platform and calling convention of the programs."""
    here, platforms = platform_here(), manifest["platforms"]
    if here not in platforms:
        raise InputError(
            f"{folder}: platforms is {', '.join(platforms)}, and this machine is {here}; export "
            f"the network again with --platforms={','.join([*platforms, here])}, or run it on "
            "another platform (JAX_PLATFORMS=cpu)"
        )
    version = manifest["calling_convention_version"]
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= version <= most:
        raise InputError(
            f"{folder}: calling_convention_version is {version} (jax "
            f"{manifest['versions']['jax']}); jax {jax.__version__} reads {least} to {most}; "
            "install that jax, or export the network again"
        )
