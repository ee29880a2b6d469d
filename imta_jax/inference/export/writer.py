"""Writes a classifier as an export: StableHLO programs, ONNX models or safetensors.

The layout of the folders is in `folder`, `onnx_folder` and `safetensors_folder`, the export of a
run in `run_export`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imta_jax.data import EvaluationTransform, Preprocessing
from imta_jax.data.pipeline.evaluation_transform import transform_from_dict
from imta_jax.errors import InputError, unknown_name
from imta_jax.evaluation import OperatingPoint, exit_costs, pareto_front
from imta_jax.inference.engine.classifier_stages import DTYPES, staged_classifier
from imta_jax.inference.engine.staged import with_exit_rule
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.manifest import point_to_manifest
from imta_jax.inference.export.model_card import write_model_card
from imta_jax.inference.export.onnx_folder import write_onnx
from imta_jax.inference.export.prepare import add_machine_files, check_machine_files
from imta_jax.inference.export.safetensors_folder import write_safetensors
from imta_jax.inference.export.stablehlo_folder import write_stablehlo
from imta_jax.interop.quantization import quantize_classifier
from imta_jax.models import MultiExitClassifier
from imta_jax.techniques.exit_rules import DEFAULT_EXIT_RULE, ExitRule
from imta_jax.types import PerChannel

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
FORMATS = ("stablehlo", "onnx", "safetensors")
WEIGHTS = ("float32", "int8")


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
    format: str = "stablehlo",
    weights: str = "float32",
    results: Mapping[str, Any] | None = None,
    profile: bool = False,
    compiled: Sequence[float] = (),
) -> None:
    """Writes a classifier as a folder, atomically. `load_exported` reads it.

    Args:
      classifier: phase I or II; it is not modified.
      folder: folder to write.
      points: thresholds for several budgets.
      class_names: [K].
      mean: per channel, of pixels scaled to 0..1, as in training.
      std: standard deviation per channel, above 0.
      preprocessing: `Dataset.preprocessing` or `Dataset.evaluation_transform`.
      platforms: platforms to compile for, some of `PLATFORMS`.
      dtype: in which the backbone computes, "float32" or "bfloat16".
      accuracy: per exit, values in percent by name, for the manifest, as `origin` is.
      origin: origin of the weights, for the manifest.
      exit_rule: see `AdaptiveClassifier`. Its programs are exported.
      overwrite: whether an earlier export may be replaced.
      format: "stablehlo", which `load_exported` reads, "onnx" or "safetensors".
      weights: "float32", or "int8" for the kernels of `interop.quantization.quantize_classifier`,
        on whose logits `points` are to be chosen.
      results: sections `dataset` and `phases` of a `results.json`, for the model card.
      profile: whether to measure the stages on this machine and store their times.
      compiled: budgets whose programs to compile and store; it implies `profile`.

    Raises:
      FileExistsError: the folder exists.
      ValueError: an unknown name; values of another network; weights or logits that are not finite.
    """
    export_folder.check_replaceable(folder, overwrite)
    check_choices(platforms, dtype, format, weights)
    check_machine_files(platforms, format, profile=profile, compiled=compiled)
    _check_arguments(classifier, points, class_names, mean, std)
    transform = _transform(preprocessing, classifier.image_shape, mean, std)
    manifest = _describe(classifier, class_names, transform, accuracy, points, origin or {})
    options = {"platforms": platforms, "dtype": dtype, "exit_rule": exit_rule}
    write = _prepare(classifier, manifest, transform, format, weights, options)
    with export_folder.replacing_folder(folder, overwrite=overwrite) as partial:
        write(partial)
        write_model_card(partial, manifest, results or {}, format=format, weights=weights)
        add_machine_files(partial, compiled, profile=profile)


def _prepare(
    classifier: MultiExitClassifier,
    manifest: Mapping[str, Any],
    transform: EvaluationTransform,
    format: str,
    weights: str,
    options: Mapping[str, Any],
) -> Callable[[Path], None]:
    """The function that writes a format to a folder. `options` are those of `write_stablehlo`."""
    int8 = weights == "int8"
    classifier = quantize_classifier(classifier) if int8 else classifier
    if format == "stablehlo":
        return write_stablehlo(classifier, manifest, transform, int8=int8, **options)
    if format == "onnx":
        network = staged_classifier(classifier, transform=transform, images_last=False)
        network = with_exit_rule(network, options["exit_rule"])
        return functools.partial(write_onnx, network, manifest, int8=int8)
    return functools.partial(write_safetensors, classifier, manifest)


def check_choices(
    platforms: Sequence[str], dtype: str, format: str = "stablehlo", weights: str = "float32"
) -> None:
    """Checks the names of platforms, dtype, format and weights.

    Raises:
      ValueError: an unknown name, no platform, or options that exclude each other.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown_name("platform", platform, PLATFORMS)
    if not platforms:
        raise InputError(f"platforms is empty; expected some of {', '.join(PLATFORMS)}")
    for name, value, valid in [
        ("dtype", dtype, DTYPES),
        ("format", format, FORMATS),
        ("weights", weights, WEIGHTS),
    ]:
        if value not in valid:
            raise unknown_name(name, value, valid)
    if dtype != "float32" and (format != "stablehlo" or weights != "float32"):
        raise InputError(
            f"dtype is {dtype} with format={format} and weights={weights}; expected float32"
        )
    if format == "safetensors" and weights != "float32":
        raise InputError(f"weights is {weights} with format=safetensors; expected float32")


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


def _describe(
    classifier: MultiExitClassifier,
    class_names: Sequence[str],
    transform: EvaluationTransform,
    accuracy: Sequence[Mapping[str, float]],
    points: Sequence[OperatingPoint],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest's entries about classes, preprocessing, exits and operating points."""
    costs = exit_costs(classifier)
    rows = [
        {
            "exit": i + 1,
            "macs": int(costs.macs[i]),
            "published_ops": int(costs.published_ops[i]),
            "params": int(costs.params[i]),
        }
        for i in range(len(costs.macs))
    ]
    accuracy = accuracy or [{}] * len(rows)
    return {
        "class_names": [*map(str, class_names)],
        "preprocessing": transform.to_dict(),
        "exits": [row | dict(more) for row, more in zip(rows, accuracy, strict=True)],
        "operating_points": [*map(point_to_manifest, pareto_front(points))],
        "origin": dict(origin),
    }


def _check_arguments(
    classifier: MultiExitClassifier,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: PerChannel,
    std: PerChannel,
) -> None:
    """Checks the lengths of the arguments against the classifier."""
    exits, channels = classifier.num_exits, classifier.image_shape[2]
    for name, length, expected in [
        ("class_names", len(class_names), classifier.num_classes),
        ("mean", len(mean), channels),
        ("std", len(std), channels),
        *(("thresholds", len(point.thresholds), exits) for point in points),
        *(
            ("validation_exit_fractions", len(point.validation_exit_fractions or ()), exits)
            for point in points
        ),
    ]:
        if length != expected:
            raise InputError(f"{name}: expected {expected} values for this network; found {length}")
    if not points:
        raise InputError("points is empty; expected thresholds for at least one budget")
