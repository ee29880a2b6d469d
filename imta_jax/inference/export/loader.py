"""An exported network, loaded and checked; needs JAX and neither Flax nor the training code."""

import functools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from imta_jax.evaluation.operating_points import OperatingPoint, best_within_budget
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.staged import Rows, StagedNetwork, Weights
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.manifest import check_fit, point_from_manifest
from imta_jax.nn.pixels import normalize


@dataclass(frozen=True)
class ExportedClassifier:
    """What an exported folder holds, ready to run on this machine.

    Attributes:
      network: its stages, for `AdaptiveClassifier`; takes uint8 pixels or normalised floats.
      class_names: [K].
      points: thresholds for several budgets, cheapest first.
      resize: of photographs, pixels of the shorter side before the central crop; None for small
        images, which are shown as they are.
      manifest: all that `manifest.json` says: costs and accuracies per exit, versions, origin.
    """

    network: StagedNetwork
    class_names: tuple[str, ...]
    points: tuple[OperatingPoint, ...]
    resize: int | None
    manifest: dict[str, Any]

    def point_for(self, budget: float) -> OperatingPoint:
        """The best point that costs at most `budget`, a share of the full multiply-adds.

        Raises:
          ValueError: there is none; lists those there are.
        """
        return best_within_budget(self.points, budget)

    def adaptive(self, budget: float = 1.0, **options: Any) -> AdaptiveClassifier:
        """A classifier with early exits for a budget; `options` go to `AdaptiveClassifier`.

        Raises:
          ValueError: a budget below all points, or options that do not fit.
        """
        point = self.point_for(budget)
        return AdaptiveClassifier(
            self.network,
            point.thresholds,
            exit_fractions=point.validation_exit_fractions,
            **options,
        )


def load_exported(folder: str | Path) -> ExportedClassifier:
    """Loads an exported folder after checking all of it; no code from it is run.

    Args:
      folder: that `export_run` or `export_classifier` wrote.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it is no export, damaged, of a newer format or jax, or not for this platform.
    """
    folder = Path(folder)
    manifest = export_folder.read_manifest(folder)
    _check_versions(folder, manifest)
    try:
        return _load(folder, manifest)
    except (KeyError, TypeError, zipfile.BadZipFile) as error:
        # Every file is what was sealed: it was sealed wrong.
        raise ValueError(
            f"{folder}: not of a form that this imta_jax writes "
            f"({type(error).__name__}: {error}); export it again"
        ) from error


def platform_here() -> str:
    """The platform that programs run on by default here: "cpu", "cuda", "rocm" or "tpu"."""
    client = jax.devices()[0].client
    if jax.default_backend() != "gpu":
        return jax.default_backend()
    return "rocm" if "rocm" in client.platform_version.lower() else "cuda"


def _load(folder: Path, manifest: dict[str, Any]) -> ExportedClassifier:
    programs = [_program(folder, stage) for stage in range(len(manifest["stages"]))]
    try:
        check_fit(manifest, programs)
    except ValueError as error:
        raise ValueError(
            f"{folder / export_folder.MANIFEST}: {error}; it was changed by hand, or sealed wrong: "
            "export it again"
        ) from error
    pixels = manifest["preprocessing"]
    mean, std = tuple(pixels["mean"]), tuple(pixels["std"])
    network = StagedNetwork(
        stages=(
            functools.partial(_open_and_run, programs[0], mean, std),
            *(functools.partial(_run, program) for program in programs[1:]),
        ),
        weights=_weights(folder, manifest, programs),
        image_shape=tuple(manifest["image_shape"]),
        image_dtype=np.dtype(np.uint8),
        macs=np.asarray([row["macs"] for row in manifest["exits"]], np.int64),
        name=manifest["name"],
    )
    return ExportedClassifier(
        network,
        tuple(manifest["class_names"]),
        tuple(point_from_manifest(point) for point in manifest["operating_points"]),
        pixels["resize"],
        manifest,
    )


def _run(program: jax.export.Exported, weights: Weights, rows: Rows) -> tuple[Rows, jax.Array]:
    return program.call(list(weights), tuple(rows))


def _open_and_run(
    program: jax.export.Exported,
    mean: Sequence[float],
    std: Sequence[float],
    weights: Weights,
    rows: Rows,
) -> tuple[Rows, jax.Array]:
    """The first stage: its program takes normalised floats."""
    (images,) = rows
    images = normalize(images, mean, std) if images.dtype == jnp.uint8 else images
    return _run(program, weights, (images,))


def _program(folder: Path, stage: int) -> jax.export.Exported:
    path = folder / export_folder.program_name(stage)
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # a reader of flat buffers raises almost anything
        raise ValueError(
            f"{path}: jax {jax.__version__} cannot read it ({error}); export it again with a jax "
            "that is not newer"
        ) from error


def _weights(
    folder: Path, manifest: dict[str, Any], programs: Sequence[jax.export.Exported]
) -> tuple[list[jax.Array], ...]:
    """Per stage its arrays on the device, each array once."""
    path = folder / export_folder.WEIGHTS
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    placed: dict[str, jax.Array] = {}
    for of_stage, program in zip(manifest["stages"], programs, strict=True):
        (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        for name, aval in zip(of_stage["weights"], expected, strict=True):
            if name in placed:
                continue
            array = arrays[name]
            # NumPy's files know no bfloat16: its bits are kept.
            array = array.view(jnp.bfloat16) if aval.dtype == jnp.bfloat16 else array
            if (array.shape, array.dtype) != (aval.shape, aval.dtype):
                raise ValueError(
                    f"{path}: {name} is {array.dtype} {array.shape}, and its program takes "
                    f"{aval.dtype} {aval.shape}; export it again"
                )
            placed[name] = jnp.asarray(array)
    return tuple([placed[name] for name in stage["weights"]] for stage in manifest["stages"])


def _check_versions(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuses programs of another platform, or of a convention that this jax does not know."""
    here, made_for = platform_here(), manifest["platforms"]
    if here not in made_for:
        raise ValueError(
            f"{folder}: exported for {', '.join(made_for)}, and this is {here}; export it again "
            f"with --platforms={','.join([*made_for, here])}, or run it elsewhere "
            "(JAX_PLATFORMS=cpu)"
        )
    found = manifest["calling_convention_version"]
    least = jax.export.minimum_supported_calling_convention_version
    most = jax.export.maximum_supported_calling_convention_version
    if not least <= found <= most:
        raise ValueError(
            f"{folder}: of calling convention {found} (jax {manifest['versions']['jax']}), and jax "
            f"{jax.__version__} reads {least} to {most}; install a jax near that one, or export "
            "it again"
        )
