"""Command line: compares threshold methods on logits of any framework.

Needs no JAX and no network, only two files of logits and the costs of the exits.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from imta_jax.errors import InputError, message_of
from imta_jax.evaluation.methods.comparison import DEFAULT_BUDGETS, DEFAULT_TOLERANCES
from imta_jax.evaluation.methods.comparison_record import (
    CONFIDENCE_LEVEL,
    comparison_record,
    comparison_text,
)
from imta_jax.evaluation.predictions import Predictions, load_predictions
from imta_jax.runtime.files import write_json
from imta_jax.runtime.paths import path_argument

_FILES = "an .npz with `logits` [exits, images, classes] and `labels` [images]"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the comparison and optionally writes it as JSON. User errors exit with code 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        validation, test = (load_predictions(p) for p in (arguments.validation, arguments.test))
        costs = _numbers("--costs", arguments.costs)
        _check_costs(costs)
        _check_number_of_images(validation, arguments.validation)
        record = comparison_record(validation, test, costs, _budgets(arguments.budgets, costs))
    except FileNotFoundError as error:
        parser.error(f"no file {error.filename}; expected {_FILES}")
    except (ValueError, OSError) as error:
        parser.error(message_of(error))
    print(comparison_text(record))
    if arguments.out:
        try:
            write_json(arguments.out, record)
        except OSError as error:
            parser.error(f"--out={arguments.out} cannot be written: {error.strerror}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.evaluation",
        description="Compares methods for choosing early-exit thresholds, on logits of any "
        "framework.",
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


def _check_number_of_images(validation: Predictions, path: Path) -> None:
    """Raises a ValueError if there are too few images to certify any default tolerance.

    Without any early-exit error among n images Clopper and Pearson's upper bound is
    1 - (1 - level)^(1/n). With fewer images than computed here it exceeds every default tolerance.
    """
    level, largest = CONFIDENCE_LEVEL, max(DEFAULT_TOLERANCES) / 100
    certifying = math.ceil(math.log(1 - level) / math.log(1 - largest))
    least = max(certifying, len(validation.logits))
    if len(validation.labels) < least:
        raise InputError(
            f"{path}: {len(validation.labels)} validation images; expected at least {least}, to "
            f"certify a tolerance of {100 * largest:g} points with {level:.0%} confidence"
        )


def _budgets(text: str | None, costs: Sequence[float]) -> list[float]:
    """The given budgets, or the default budgets that are at least the first exit's cost."""
    if text is not None:
        return _numbers("--budgets", text)
    return [b for b in DEFAULT_BUDGETS if b * costs[-1] >= costs[0]] or [1.0]
