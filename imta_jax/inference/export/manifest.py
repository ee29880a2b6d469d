"""The manifest of an export: its operating points, and checks against the programs."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform, transform_from_dict
from imta_jax.errors import InputError
from imta_jax.evaluation.operating_points import OperatingPoint

_TEXTS = ("name", "dtype", "evaluated_dtype")
_DTYPES = ("float32", "bfloat16")
_PERCENTAGES = {"top1", "top5", "validation_top1", "ece"}
_ROUNDING = 1e-3  # Rounding error of fractions that sum to 1.


def check_manifest(manifest: Mapping[str, Any], programs: Sequence[jax.export.Exported]) -> None:
    """Checks shapes, counts and numbers of a manifest against the programs.

    Args:
      manifest: content of `manifest.json`.
      programs: programs of the stages.

    Raises:
      ValueError: names the first field that does not match, its value and the expected one.
      KeyError: a field is missing.
      TypeError: a field has another type.
    """
    shape, classes, exits = _image_shape(programs[0]), _num_classes(programs[-1]), len(programs)
    names, rows = manifest["class_names"], manifest["exits"]
    for field, value, expected in [
        ("image_shape", manifest["image_shape"], shape),
        ("number of exits", len(rows), exits),
        ("number of class_names", len(names), classes),
        ("exits.exit", [row["exit"] for row in rows], list(range(1, exits + 1))),
    ]:
        if value != expected:
            raise InputError(f"{field} is {value}; the programs expect {expected}")
    for field, value in [
        ("class_names", names),
        ("platforms", manifest["platforms"]),
        ("name, dtype, evaluated_dtype", [manifest[k] for k in _TEXTS]),
    ]:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise InputError(f"{field} must be strings; found {value}")
    if manifest["dtype"] not in _DTYPES:
        raise InputError(f"dtype must be one of {_DTYPES}; found {manifest['dtype']!r}")
    _check_exits(rows)
    _check_points(manifest["operating_points"], exits)


def _check_exits(rows: Sequence[Mapping[str, Any]]) -> None:
    """Checks costs and accuracies of the exits."""
    for name in ("macs", "published_ops", "params"):
        costs = [row[name] for row in rows]
        _check_numbers(f"exits.{name}", costs, len(rows), least=1)
        if name == "macs" and any(after <= before for before, after in itertools.pairwise(costs)):
            raise InputError(f"exits.macs must rise; found {costs}")
    for row in rows:
        for accuracy in _PERCENTAGES & row.keys():
            _check_numbers(f"exits.{accuracy}", [row[accuracy]], 1, least=0, most=100)


def _check_points(points: Sequence[Mapping[str, Any]], exits: int) -> None:
    """Checks budgets, thresholds, exit fractions and accuracies of the operating points."""
    if not points:
        raise InputError("operating_points is empty; expected thresholds for at least one budget")
    for point in points:
        budget, fractions = point["budget"], point["exit_fractions"]
        above_zero, at_most_one = sys.float_info.min, 1 + _ROUNDING
        _check_numbers("operating_points.budget", [budget], 1, least=above_zero, most=at_most_one)
        _check_numbers("operating_points.thresholds", point["thresholds"], exits)
        _check_numbers(
            "operating_points.exit_fractions", fractions, exits, least=0, most=at_most_one
        )
        if sum(fractions) > at_most_one:
            raise InputError(
                f"operating_points.exit_fractions must sum to at most 1; found {fractions}"
            )
        for accuracy in ("validation_top1", "top1"):
            values = [point[accuracy]]
            _check_numbers(f"operating_points.{accuracy}", values, 1, least=0, most=100)


def check_finite(name: str, weights: np.ndarray, file_name: str) -> None:
    """Checks an array of weights.

    Raises:
      ValueError: a value is NaN or infinite.
    """
    finite = np.isfinite(weights)
    if not finite.all():
        index = np.argwhere(~finite)[0].tolist()
        raise InputError(
            f"{file_name}: {name} is {weights[tuple(index)]} at {index}; expected finite weights; "
            "export a network that did not diverge"
        )


def transform_from_manifest(manifest: Mapping[str, Any]) -> EvaluationTransform:
    """The preprocessing of images that a manifest describes.

    Args:
      manifest: content of `manifest.json`, after `check_manifest`.

    Raises:
      ValueError: names the first field that is missing or invalid.
    """
    height, width, channels = manifest["image_shape"]
    fields = manifest["preprocessing"]
    if not isinstance(fields, dict):
        raise InputError(f"preprocessing must be an object; found {fields!r}")
    try:
        return transform_from_dict(fields, (height, width, channels), manifest["format_version"])
    except InputError as error:
        raise InputError(f"preprocessing.{error}") from error


def point_to_manifest(point: OperatingPoint) -> dict[str, Any]:
    """The fields of an operating point that a manifest of format version 1 has."""
    return {
        "budget": point.budget,
        "thresholds": point.thresholds,
        "exit_fractions": point.validation_exit_fractions,
        "validation_top1": point.validation_top1,
        "top1": point.top1,
    }


def point_from_manifest(fields: Mapping[str, Any]) -> OperatingPoint:
    """The operating point of a manifest.

    Raises:
      KeyError: a field is missing.
      TypeError: a field is not a list.
    """
    return OperatingPoint(
        budget=fields["budget"],
        thresholds=tuple(fields["thresholds"]),
        validation_exit_fractions=tuple(fields["exit_fractions"]),
        validation_top1=fields["validation_top1"],
        top1=fields["top1"],
    )


def _image_shape(first: jax.export.Exported) -> list[int]:
    """[H, W, C] of the images that the first program takes."""
    (_, state), _ = jax.tree.unflatten(first.in_tree, first.in_avals)
    if len(state) != 1 or len(state[0].shape) != 4:
        shapes = [list(array.shape) for array in state]
        raise InputError(
            f"the first program takes arrays of the shapes {shapes}, expected images [b, H, W, C];"
            " it is the program of another stage"
        )
    return list(state[0].shape[1:])


def _num_classes(last: jax.export.Exported) -> int:
    _, logits = jax.tree.unflatten(last.out_tree, last.out_avals)
    return logits.shape[-1]


def _check_numbers(
    field: str, values: Any, count: int, *, least: float | None = None, most: float | None = None
) -> None:
    """Checks that a field is a list of `count` finite numbers, from `least` to `most`."""
    low, high = -sys.float_info.max if least is None else least, most or sys.float_info.max
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if numbers and len(values) == count and all(low <= value <= high for value in values):
        return
    range_ = "" if least is None else f", none below {least:g}"
    range_ += "" if most is None else f", none above {most:g}"
    raise InputError(f"{field} must be {count} finite numbers{range_}; found {values}")
