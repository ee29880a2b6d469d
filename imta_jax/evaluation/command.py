"""Command line: compares threshold methods on logits or scores of any framework.

Needs no JAX and no network, only two files (see `split_files`) and the costs of the exits.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imta_jax.errors import InputError, message_of, unknown_name
from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.command_checks import (
    DEFAULT_METHOD,
    check_options,
    prints_guarantee,
    split_warnings,
)
from imta_jax.evaluation.methods.comparison import DEFAULT_BUDGETS, DEFAULT_TOLERANCES
from imta_jax.evaluation.methods.comparison_record import (
    CONFIDENCE_LEVEL,
    comparison_record,
    comparison_text,
    display_name,
    name_in_files,
)
from imta_jax.evaluation.methods.risk_control import GUARANTEES
from imta_jax.evaluation.methods.threshold_code import (
    CONFIDENCE_METHODS,
    FORMATS,
    threshold_code,
    without_always,
)
from imta_jax.evaluation.predictions import Predictions
from imta_jax.evaluation.split_files import load_split
from imta_jax.runtime.files import write_json
from imta_jax.runtime.paths import path_argument

_FILES = (
    "an .npz with `logits` [exits, images, classes] and `labels` [images], or with the `scores` of "
    "another exit rule and `correct`, both [exits, images]"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the comparison and optionally writes it as JSON. User errors exit with code 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        check_options(arguments)
        validation, test = (load_split(p) for p in (arguments.validation, arguments.test))
        costs = _numbers("--costs", arguments.costs)
        _check_costs(costs)
        tolerances = _tolerances(arguments.tolerance)
        _check_same_kind(validation, test, arguments)
        _check_number_of_exits(validation[0], costs, arguments)
        _check_number_of_images(validation[0], arguments, tolerances)
        record = comparison_record(
            validation,
            test,
            costs,
            _budgets(arguments.budgets, costs),
            tolerances=tolerances,
            confidence_level=_level(arguments),
        )
        text = comparison_text(record)
        if arguments.format:
            text = _code(record, arguments, scores=isinstance(validation, Outcomes))
    except FileNotFoundError as error:
        parser.error(f"no file {error.filename}; expected {_FILES}")
    except (ValueError, OSError) as error:
        parser.error(message_of(error))
    print(text)
    if not any(point["method"] in GUARANTEES for point in record["points"]):
        print("note: no risk control, since it needs scores in 0..1", file=sys.stderr)
    for warning in (*split_warnings(validation, test, arguments), cost_warning(record, costs)):
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    if arguments.out:
        try:
            write_json(arguments.out, _with_null(record))
        except OSError as error:
            parser.error(f"--out={arguments.out} cannot be written: {error.strerror}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.evaluation",
        description="Compares methods for choosing early-exit thresholds, on logits or scores of "
        "any framework.",
    )
    for name, purpose in (
        ("validation", "validation images, to choose thresholds"),
        ("test", "test images, to measure"),
    ):
        parser.add_argument(name, type=path_argument(name), help=f"{purpose}: {_FILES}")
    parser.add_argument(
        "--costs", required=True, help="cumulative cost of each exit, in any unit, e.g. 1e6,2e6,4e6"
    )
    parser.add_argument(
        "--budgets", help="mean costs, as fractions of the last exit's cost, e.g. 0.3,0.5"
    )
    parser.add_argument(
        "--tolerance",
        help="accuracy that the guarantees may lose, in percentage points, e.g. 0.5,1 (default: "
        f"{','.join(f'{value:g}' for value in DEFAULT_TOLERANCES)})",
    )
    parser.add_argument(
        "--confidence",
        type=_confidence,
        help="level of guarantees and intervals, above 0 and below 1 (default: "
        f"{CONFIDENCE_LEVEL:g})",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="print Python code that applies one point, instead of the table",
    )
    parser.add_argument(
        "--method",
        type=_method,
        metavar="{" + ",".join(map(display_name, CONFIDENCE_METHODS)) + "}",
        help=f"method of --format, with one budget or one tolerance (default: {DEFAULT_METHOD})",
    )
    parser.add_argument(
        "--out",
        type=path_argument("--out"),
        help="JSON file for the table with thresholds and exit fractions",
    )
    return parser


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"{option}={text}: {error}; expected numbers separated by commas"
        ) from error


def _check_costs(costs: Sequence[float]) -> None:
    """Raises a ValueError unless every exit costs more than the exit before it."""
    if not all(before < after for before, after in itertools.pairwise([0, *costs])):
        raise InputError(
            f"--costs={','.join(f'{cost:g}' for cost in costs)}; expected strictly rising numbers "
            "above 0: the cost of each exit includes all stages before it"
        )


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def _method(text: str) -> str:
    """The name in result files of a method, which may be given by that name or the table's."""
    name = name_in_files(text)
    if name not in CONFIDENCE_METHODS:
        valid = map(display_name, CONFIDENCE_METHODS)
        raise argparse.ArgumentTypeError(str(unknown_name("method", text, valid)))
    return name


def _level(arguments: argparse.Namespace) -> float:
    return CONFIDENCE_LEVEL if arguments.confidence is None else arguments.confidence


def _tolerances(text: str | None) -> Sequence[float]:
    """The given tolerances in percentage points, or the default ones."""
    if text is None:
        return DEFAULT_TOLERANCES
    tolerances = _numbers("--tolerance", text)
    if not all(0 < value <= 100 for value in tolerances):
        raise InputError(f"--tolerance={text}; expected percentage points above 0, at most 100")
    return tolerances


def _code(record: Mapping[str, Any], arguments: argparse.Namespace, *, scores: bool) -> str:
    """The code of the only point of the chosen method."""
    method = arguments.method or DEFAULT_METHOD
    methods = dict.fromkeys(point["method"] for point in record["points"])
    if method not in methods:
        valid = map(display_name, methods)
        raise unknown_name("--method for these scores", display_name(method), valid)
    points = [point for point in record["points"] if point["method"] == method]
    if len(points) != 1:
        option = "--budgets" if any("budget" in point for point in points) else "--tolerance"
        settings = "; ".join(point["asked"] for point in points)
        raise InputError(
            f"--format={arguments.format} prints one point; expected one value of {option}, since"
            f" --method={display_name(method)} has: {settings}"
        )
    return threshold_code(points[0], record["full_cost"], arguments.format, scores=scores).rstrip()


def _with_null(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with null for thresholds at which every image leaves."""
    points = [
        point | {"thresholds": without_always(point["thresholds"])}
        if "thresholds" in point
        else point
        for point in record["points"]
    ]
    return {**record, "points": points}


def cost_warning(record: Mapping[str, Any], costs: Sequence[float]) -> str | None:
    """A message if the costs of test and validation images differ significantly.

    The standard deviation of a cost is at most half of its range. A difference of more than three
    standard errors, and 5% of the validation cost, is reported for the point where it is largest.

    Args:
      record: return value of `comparison_record`.
      costs: [E] cumulative costs.
    """
    images = record["images"]
    error = (costs[-1] - costs[0]) / 2 * math.sqrt(sum(1 / images[name] for name in images))

    def difference(point: Mapping[str, Any]) -> float:
        return abs(point["mean_cost"] - point["validation_cost"])

    worst = max(record["points"], key=difference)
    if difference(worst) <= max(3 * error, 0.05 * worst["validation_cost"]):
        return None
    cost, test_cost = (
        f"{worst[name] / record['full_cost']:.1%}" for name in ("validation_cost", "mean_cost")
    )
    return (
        f"{display_name(worst['method'])}, {worst['asked']}: validation images cost {cost} of the "
        f"last exit, test images {test_cost}; budgets and guarantees hold only if both are "
        "preprocessed alike and come from one distribution"
    )


def _check_same_kind(
    validation: Predictions | Outcomes, test: Predictions | Outcomes, arguments: argparse.Namespace
) -> None:
    """Raises a ValueError if one file has logits and the other one scores."""
    if isinstance(validation, Outcomes) != isinstance(test, Outcomes):
        with_scores = arguments.validation if isinstance(validation, Outcomes) else arguments.test
        raise InputError(
            f"{with_scores} has scores, the other file logits; expected both of one kind"
        )


def _check_number_of_exits(
    by_exit: np.ndarray, costs: Sequence[float], arguments: argparse.Namespace
) -> None:
    """Raises a ValueError unless each exit has a cost."""
    if len(costs) != len(by_exit):
        raise InputError(
            f"--costs={arguments.costs} has {len(costs)} numbers, and {arguments.validation} "
            f"{len(by_exit)} exits (shape {by_exit.shape}, exits first); expected one cost per exit"
        )


def _check_number_of_images(
    by_exit: np.ndarray, arguments: argparse.Namespace, tolerances: Sequence[float]
) -> None:
    """Raises a ValueError if there are too few images to certify any tolerance that is printed.

    Without any early-exit error among n images Clopper and Pearson's upper bound is
    1 - (1 - level)^(1/n). With fewer images than computed here it exceeds every tolerance.

    Args:
      by_exit: logits or scores of the validation images, [E, N, ...].
      arguments: arguments of the command line.
      tolerances: in percentage points.
    """
    level, largest, path = _level(arguments), max(tolerances) / 100, arguments.validation
    certifying = 1 if largest == 1 else _certifying_images(level, largest)
    num_exits, num_images = by_exit.shape[:2]
    if num_images < num_exits:
        raise InputError(
            f"{path}: {num_images} validation images and {num_exits} exits; expected at least one "
            f"image per exit; use more images (shape {by_exit.shape}, exits first)"
        )
    if num_images < certifying and prints_guarantee(arguments):
        raise InputError(
            f"{path}: {num_images} validation images; expected at least {certifying}, to "
            f"certify a tolerance of {100 * largest:g} points with {100 * level:g}% confidence; "
            "use more images, a larger --tolerance or a lower --confidence"
        )


def _certifying_images(level: float, tolerance: float) -> int:
    """The fewest images that certify a tolerance below 1 if none is an early-exit error."""
    return math.ceil(math.log(1 - level) / math.log(1 - tolerance))


def _budgets(text: str | None, costs: Sequence[float]) -> list[float]:
    """The given budgets, or the default budgets that are at least the first exit's cost."""
    if text is not None:
        return _numbers("--budgets", text)
    return [b for b in DEFAULT_BUDGETS if b * costs[-1] >= costs[0]] or [1.0]
