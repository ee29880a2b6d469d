"""The manifest of an export: its operating points, and checks against the programs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform, transform_from_dict
from imta_jax.errors import InputError
from imta_jax.evaluation.operating_points import OperatingPoint


def check_manifest(manifest: Mapping[str, Any], programs: Sequence[jax.export.Exported]) -> None:
    """Checks shapes, counts and numbers of a manifest against the programs.

    Args:
      manifest: content of `manifest.json`.
      programs: of the stages.

    Raises:
      ValueError: names the first field that does not match, its value and the expected one.
      KeyError: a field is missing.
      TypeError: a field has another type.
    """
    shape, classes = _image_shape(programs[0]), _num_classes(programs[-1])
    exits = len(programs)
    for field, found, expected in [
        ("image_shape", manifest["image_shape"], shape),
        ("number of exits", len(manifest["exits"]), exits),
        ("number of class_names", len(manifest["class_names"]), classes),
    ]:
        if found != expected:
            raise InputError(f"{field} is {found}; the programs expect {expected}")
    if not manifest["operating_points"]:
        raise InputError("operating_points is empty; expected thresholds for at least one budget")
    above_zero = sys.float_info.min
    points = manifest["operating_points"]
    _check_numbers("exits.macs", [row["macs"] for row in manifest["exits"]], exits, least=1)
    for point in points:
        _check_numbers("operating_points.budget", [point["budget"]], 1, least=above_zero)
        _check_numbers("operating_points.thresholds", point["thresholds"], exits)
        _check_numbers("operating_points.exit_fractions", point["exit_fractions"], exits, least=0)


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
        raise InputError(f"preprocessing is {fields!r}; expected an object")
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
    (_, (images,)), _ = jax.tree.unflatten(first.in_tree, first.in_avals)
    return list(images.shape[1:])


def _num_classes(last: jax.export.Exported) -> int:
    _, logits = jax.tree.unflatten(last.out_tree, last.out_avals)
    return logits.shape[-1]


def _check_numbers(field: str, found: Any, count: int, *, least: float = -float("inf")) -> None:
    """Checks that a field is a list of `count` numbers, none below `least`."""
    numbers = isinstance(found, list) and all(isinstance(value, int | float) for value in found)
    if not numbers or len(found) != count or not all(value >= least for value in found):
        range_ = "" if least == -float("inf") else f", none below {least:g}"
        raise InputError(f"{field} is {found}; expected {count} numbers{range_}")
