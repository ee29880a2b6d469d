"""Writes a classifier as an export: a program per stage, weights and a manifest.

The layout of the folder is in `folder`, the export of a run in `run_export`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from imta_jax.data import EvaluationTransform, Preprocessing
from imta_jax.data.pipeline.evaluation_transform import transform_from_dict
from imta_jax.errors import InputError, unknown_name
from imta_jax.evaluation import ExitCosts, OperatingPoint, exit_costs, pareto_front
from imta_jax.inference.engine.classifier_stages import DTYPES, staged_classifier
from imta_jax.inference.engine.staged import StagedNetwork, StagesAndWeights, with_exit_rule
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.exit_rule import describe_rule, export_rule, for_any_batch_size
from imta_jax.inference.export.golden import write_golden
from imta_jax.inference.export.manifest import check_finite, point_to_manifest
from imta_jax.models import MultiExitClassifier
from imta_jax.models.optimize import computes_faster_images_last
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.files import write_json
from imta_jax.techniques.exit_rules import DEFAULT_EXIT_RULE, ExitRule
from imta_jax.types import PerChannel

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
_FILE_NAMES = (export_folder.program_name, export_folder.images_last_name, export_folder.rule_name)


def export_classifier(
    classifier: MultiExitClassifier,
    folder: str | Path,
    *,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: PerChannel,
    std: PerChannel,
    preprocessing: Preprocessing | EvaluationTransform,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    dtype: str = "float32",
    accuracy: Sequence[Mapping[str, float]] = (),
    origin: Mapping[str, Any] | None = None,
    exit_rule: str | Callable[..., Any] | ExitRule = DEFAULT_EXIT_RULE,
    overwrite: bool = False,
) -> None:
    """Writes a classifier as a folder that `load_exported` reads, atomically.

    Args:
      classifier: phase I or II; it is not modified.
      folder: to write.
      points: thresholds for several budgets.
      class_names: [K].
      mean: per channel, of pixels scaled to 0..1, as in training.
      std: standard deviation per channel, above 0.
      preprocessing: `Dataset.preprocessing` or `Dataset.evaluation_transform`.
      platforms: to compile for, of `PLATFORMS`.
      dtype: in which the backbone computes, "float32" or "bfloat16".
      accuracy: per exit, values in percent by name, for the manifest, as `origin` is.
      origin: of the weights.
      exit_rule: see `AdaptiveClassifier`. Its programs are exported.
      overwrite: whether an earlier export may be replaced.

    Raises:
      FileExistsError: the folder exists.
      ValueError: an unknown name; values of another network; weights or logits that are not finite.
    """
    export_folder.check_replaceable(folder, overwrite)
    check_choices(platforms, dtype)
    _check_arguments(classifier, points, class_names, mean, std)
    transform = _transform(preprocessing, classifier.image_shape, mean, std)
    network = _staged(classifier, platforms, dtype, exit_rule)
    arrays, names = _named_weights(network)
    programs = _export_programs(network, network, platforms)
    for_cpu = _export_programs(network, network.images_last, ("cpu",))
    rules = export_rule(network.rule, network.num_classes, platforms)
    manifest = {
        **_describe_network(network, programs, names, dtype),
        "class_names": [*map(str, class_names)],
        "preprocessing": transform.to_dict(),
        "exits": _describe_exits(exit_costs(classifier), accuracy),
        "operating_points": [*map(point_to_manifest, pareto_front(points))],
        "origin": dict(origin or {}),
    }
    with export_folder.replacing_folder(folder, overwrite=overwrite) as partial:
        for name, files in zip(_FILE_NAMES, (programs, for_cpu, rules), strict=True):
            _write_programs(partial, files, name)
        _write_golden(partial, classifier, dtype, transform)
        np.savez(partial / export_folder.WEIGHTS, **arrays)  # pyright: ignore[reportArgumentType]
        write_json(partial / export_folder.MANIFEST, manifest, allow_nan=False)


def _staged(
    classifier: MultiExitClassifier, platforms: Sequence[str], dtype: str, exit_rule: Any
) -> StagedNetwork:
    """The network of normalized floats, with stages for larger batches if it may run on a CPU."""
    on_cpu = "cpu" in platforms and dtype == "float32" and computes_faster_images_last(classifier)
    network = staged_classifier(classifier, dtype=dtype, images_last=on_cpu)
    return with_exit_rule(network, exit_rule)


def _write_golden(
    folder: Path, classifier: MultiExitClassifier, dtype: str, transform: EvaluationTransform
) -> None:
    """Writes golden images and the logits of the network of uint8 images."""
    network = staged_classifier(classifier, dtype=dtype, transform=transform, images_last=False)
    write_golden(folder / export_folder.GOLDEN, network, transform)


def _write_programs(
    folder: Path, programs: Sequence[jax.export.Exported], file_name: Callable[[int], str]
) -> None:
    for i, program in enumerate(programs):
        (folder / file_name(i)).write_bytes(program.serialize())


def check_choices(platforms: Sequence[str], dtype: str) -> None:
    """Checks the names of platforms and dtype.

    Raises:
      ValueError: an unknown name, or no platform.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown_name("platform", platform, PLATFORMS)
    if not platforms:
        raise InputError(f"platforms is empty; expected some of {', '.join(PLATFORMS)}")
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)


def _export_programs(
    network: StagedNetwork,
    form: StagedNetwork | StagesAndWeights | None,
    platforms: Sequence[str],
) -> list[jax.export.Exported]:
    """Exports each stage for any batch size. The first takes normalized floats [b, H, W, C].

    Args:
      network: whose images the first stage takes.
      form: stages and weights, of the network or of its `images_last`.
      platforms: to compile for.
    """
    if form is None:
        return []
    (batch_size,) = jax.export.symbolic_shape("b")
    state = (jax.ShapeDtypeStruct((batch_size, *network.image_shape), network.image_dtype),)
    programs = []
    for i, (stage, weights) in enumerate(zip(form.stages, form.weights, strict=True)):
        shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
        export = jax.export.export(jax.jit(stage), platforms=tuple(platforms))
        program = for_any_batch_size(f"stage {i + 1}", lambda e=export, w=shapes, s=state: e(w, s))
        programs.append(program)
        next_state, _ = jax.tree.unflatten(program.out_tree, program.out_avals)
        state = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in next_state)
    return programs


def _named_weights(
    network: StagedNetwork,
) -> tuple[dict[str, np.ndarray], list[list[list[str]]]]:
    """The distinct weights by name, and per form and stage the names of its weights."""
    forms = [network, *filter(None, [network.images_last])]
    names: dict[int, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for weight in (w for form in forms for weights in form.weights for w in weights):
        if id(weight) not in names:
            name = names[id(weight)] = f"weight_{len(names):04d}"
            array = np.asarray(weight)
            check_finite(name, array, "the classifier")
            # NumPy's files have no bfloat16: store its bits.
            arrays[name] = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    return arrays, [
        [[names[id(weight)] for weight in weights] for weights in form.weights] for form in forms
    ]


def _describe_network(
    network: StagedNetwork,
    programs: Sequence[jax.export.Exported],
    names: Sequence[Sequence[Sequence[str]]],
    dtype: str,
) -> dict[str, Any]:
    """The manifest's fields about programs, weights, versions and the exit rule."""
    return {
        "format": export_folder.FORMAT,
        "format_version": export_folder.VERSION,
        "name": network.name,
        "dtype": dtype,
        "evaluated_dtype": "float32",
        "image_shape": list(network.image_shape),
        "platforms": list(programs[0].platforms),
        "calling_convention_version": programs[0].calling_convention_version,
        "versions": package_versions(),
        "stages": [{"weights": list(stage_names)} for stage_names in names[0]],
        **({"images_last": [{"weights": list(of)} for of in names[1]]} if names[1:] else {}),
        **describe_rule(network.rule),
    }


def _transform(
    preprocessing: Preprocessing | EvaluationTransform,
    image_shape: tuple[int, int, int],
    mean: PerChannel,
    std: PerChannel,
) -> EvaluationTransform:
    """The transform with a mean and std, after a check that JSON can store it."""
    if isinstance(preprocessing, EvaluationTransform):
        transform = replace(preprocessing, mean=tuple(mean), std=tuple(std))
    else:
        transform = preprocessing.evaluation_transform(image_shape, mean, std)
    if transform.image_shape != image_shape:
        raise InputError(
            f"preprocessing.image_shape is {transform.image_shape}; expected {image_shape}, the "
            "network's"
        )
    return transform_from_dict(transform.to_dict(), image_shape, export_folder.VERSION)


def _describe_exits(
    costs: ExitCosts, accuracy: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    rows = [
        {
            "exit": i + 1,
            "macs": int(costs.macs[i]),
            "published_ops": int(costs.published_ops[i]),
            "params": int(costs.params[i]),
        }
        for i in range(len(costs.macs))
    ]
    return [row | dict(more) for row, more in zip(rows, accuracy or [{}] * len(rows), strict=True)]


def _check_arguments(
    classifier: MultiExitClassifier,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: PerChannel,
    std: PerChannel,
) -> None:
    """Checks the lengths of the arguments against the classifier."""
    exits, channels = classifier.num_exits, classifier.image_shape[2]
    for name, found, expected in [
        ("class_names", len(class_names), classifier.num_classes),
        ("mean", len(mean), channels),
        ("std", len(std), channels),
        *(("thresholds", len(point.thresholds), exits) for point in points),
        *(
            ("validation_exit_fractions", len(point.validation_exit_fractions or ()), exits)
            for point in points
        ),
    ]:
        if found != expected:
            raise InputError(f"{name}: expected {expected} values for this network; found {found}")
    if not points:
        raise InputError("points is empty; expected thresholds for at least one budget")
