"""A classifier becomes a folder: a program per stage, weights, and all that is needed to use them.

How the folder is laid out and sealed is in `export_folder`, what is taken from a run in `export`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from imta_jax.data import Preprocessing, RandomAreaCrop
from imta_jax.errors import unknown_name
from imta_jax.evaluation import ExitCosts, OperatingPoint, exit_costs, pareto_front
from imta_jax.inference.engine.classifier_stages import DTYPES, staged_classifier
from imta_jax.inference.engine.staged import StagedNetwork
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.manifest import point_for_manifest
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.files import write_json

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")


def export_classifier(
    classifier: MultiExitClassifier,
    folder: str | Path,
    *,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    preprocessing: Preprocessing,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    dtype: str = "float32",
    accuracy: Sequence[Mapping[str, float]] = (),
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a classifier as programs, weights and what is needed to use them.

    Args:
      classifier: phase I or II; it is left as it is.
      folder: to write, whole or not at all; see `export_folder`.
      points: thresholds for several budgets.
      class_names: [K].
      mean: of the pixels per channel, 0..1, as in training.
      std: likewise, above 0.
      preprocessing: what the evaluation showed of an image.
      platforms: that the programs are made for, of `PLATFORMS`.
      dtype: in which the backbone computes, "float32" or "bfloat16".
      accuracy: per exit, in percent by name, for the record.
      origin: of the weights, for the record.
      overwrite: replaces an earlier export.

    Raises:
      FileExistsError: the folder is there.
      ValueError: an unknown platform or type; names, constants or thresholds that do not fit.
    """
    export_folder.check_replaceable(folder, overwrite)
    check_choices(platforms, dtype)
    _check_fit(classifier, points, class_names, mean, std)
    network = staged_classifier(classifier, dtype=dtype)
    arrays, names = _named_weights(network)
    programs = _programs(network, platforms)
    manifest = {
        **_describe_network(network, programs, names, dtype),
        "class_names": [str(name) for name in class_names],
        "preprocessing": _describe_preprocessing(preprocessing, mean, std),
        "exits": _describe_exits(exit_costs(classifier), accuracy),
        "operating_points": [point_for_manifest(point) for point in pareto_front(points)],
        "origin": dict(origin or {}),
    }
    with export_folder.written_folder(folder, overwrite=overwrite) as partial:
        for stage, program in enumerate(programs):
            (partial / export_folder.program_name(stage)).write_bytes(program.serialize())
        np.savez(partial / export_folder.WEIGHTS, **arrays)
        write_json(partial / export_folder.MANIFEST, manifest, allow_nan=False)


def check_choices(platforms: Sequence[str], dtype: str) -> None:
    """Refuses what no program can be made for.

    Raises:
      ValueError: an unknown platform or type, or no platform.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown_name("platform", platform, PLATFORMS)
    if not platforms:
        raise ValueError(f"no platform to export for; expected some of {', '.join(PLATFORMS)}")
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)


def _programs(network: StagedNetwork, platforms: Sequence[str]) -> list[jax.export.Exported]:
    """Each stage for any number of images; the first takes normalised floats [b, H, W, C]."""
    (count,) = jax.export.symbolic_shape("b")
    rows = (jax.ShapeDtypeStruct((count, *network.image_shape), network.image_dtype),)
    programs = []
    for stage, weights in zip(network.stages, network.weights, strict=True):
        shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
        program = jax.export.export(jax.jit(stage), platforms=tuple(platforms))(shapes, rows)
        programs.append(program)
        handed_on, _ = jax.tree.unflatten(program.out_tree, program.out_avals)
        rows = tuple(jax.ShapeDtypeStruct(row.shape, row.dtype) for row in handed_on)
    return programs


def _named_weights(network: StagedNetwork) -> tuple[dict[str, np.ndarray], list[list[str]]]:
    """All arrays by name, each once, and per stage the names of those it reads."""
    names: dict[int, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for of_stage in network.weights:
        for weight in of_stage:
            if id(weight) not in names:
                name = names[id(weight)] = f"weight_{len(names):04d}"
                array = np.asarray(weight)
                # NumPy's files know no bfloat16.
                arrays[name] = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    return arrays, [[names[id(weight)] for weight in of_stage] for of_stage in network.weights]


def _describe_network(
    network: StagedNetwork,
    programs: Sequence[jax.export.Exported],
    names: Sequence[Sequence[str]],
    dtype: str,
) -> dict[str, Any]:
    """What the programs and weights are, and by what they were made."""
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
        "stages": [{"weights": list(of_stage)} for of_stage in names],
    }


def _describe_preprocessing(
    preprocessing: Preprocessing, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    resize = preprocessing.resize if isinstance(preprocessing, RandomAreaCrop) else None
    return {
        "description": (
            f"The shorter side to {resize} pixels (bilinear, antialiased), the central ones."
            if isinstance(preprocessing, RandomAreaCrop)
            else "The image as it is."
        )
        + " Then (pixel / 255 - mean) / std per channel.",
        "resize": resize,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


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


def _check_fit(
    classifier: MultiExitClassifier,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """What is handed over beside the classifier has to be of the same network."""
    exits, channels = classifier.num_exits, classifier.image_shape[2]
    for name, found, expected in [
        ("class_names", len(class_names), classifier.num_classes),
        ("mean", len(mean), channels),
        ("std", len(std), channels),
        *(("thresholds", len(point.thresholds), exits) for point in points),
        *(
            ("validation_exit_fractions", len(point.validation_exit_fractions), exits)
            for point in points
        ),
    ]:
        if found != expected:
            raise ValueError(f"{name}: expected {expected} for this network; found {found}")
    if not points:
        raise ValueError("no operating point; expected thresholds for at least one budget")
