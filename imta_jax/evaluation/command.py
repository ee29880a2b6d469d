"""Compares threshold methods on logits of any framework, from the command line.

Needs neither JAX nor a network: two files of logits and the costs of the exits.
"""

import argparse
import itertools
import math
from collections.abc import Sequence

from imta_jax.evaluation.methods.comparison import DEFAULT_BUDGETS, DEFAULT_TOLERANCES
from imta_jax.evaluation.methods.comparison_record import (
    CONFIDENCE_LEVEL,
    comparison_record,
    comparison_text,
)
from imta_jax.evaluation.predictions import Predictions, load_predictions
from imta_jax.runtime.files import write_json

_FILES = "an .npz with `logits` [exits, images, classes] and `labels` [images]"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the comparison and, if asked to, writes it; what a user got wrong ends with code 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        validation, test = (load_predictions(p) for p in (arguments.validation, arguments.test))
        costs = _numbers("--costs", arguments.costs)
        _check_costs(costs)
        _check_enough(validation, arguments.validation)
        record = comparison_record(validation, test, costs, _budgets(arguments.budgets, costs))
    except FileNotFoundError as error:
        parser.error(f"no file {error.filename}; expected {_FILES}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(comparison_text(record))
    if arguments.out:
        try:
            write_json(arguments.out, record)
        except OSError as error:
            parser.error(f"--out={arguments.out} could not be written: {error.strerror}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.evaluation",
        description="Compares ways to choose early-exit thresholds, on logits of any framework.",
    )
    parser.add_argument("validation", help=f"images to choose thresholds on: {_FILES}")
    parser.add_argument("test", help="images to measure on, likewise")
    parser.add_argument(
        "--costs", required=True, help="cumulative cost of each exit, in any unit, e.g. 1e6,2e6,4e6"
    )
    parser.add_argument(
        "--budgets", help="mean costs allowed, as fractions of the last exit's, e.g. 0.3,0.5"
    )
    parser.add_argument("--out", help="JSON: the table with thresholds and exit fractions")
    return parser


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option}: {error}; expected numbers with commas between them") from error


def _check_costs(costs: Sequence[float]) -> None:
    """Refuses exits that cost no more than the one before: there would be nothing to trade."""
    if not all(before < after for before, after in itertools.pairwise([0, *costs])):
        raise ValueError(
            f"--costs: {', '.join(f'{cost:g}' for cost in costs)} do not increase strictly from "
            "above 0; expected the cumulative cost of each exit, what all before it cost included"
        )


def _check_enough(validation: Predictions, path: str) -> None:
    """Refuses validation images too few for any guarantee, or for a share of them per exit.

    Without a single excess error among n images the upper bound is 1 - (1 - level)^(1/n), Clopper
    and Pearson's: with fewer images than this it is above every tolerance that is asked for.
    """
    level, loosest = CONFIDENCE_LEVEL, max(DEFAULT_TOLERANCES) / 100
    certifying = math.ceil(math.log(1 - level) / math.log(1 - loosest))
    least = max(certifying, len(validation.logits))
    if len(validation.labels) < least:
        raise ValueError(
            f"{path}: {len(validation.labels)} validation images; expected at least {least}, one "
            f"per exit and {certifying} to be {level:.0%} sure of even {100 * loosest:g} points: "
            "collect more"
        )


def _budgets(text: str | None, costs: Sequence[float]) -> list[float]:
    """Those asked for, or every twentieth that the first exit leaves room for."""
    if text is not None:
        return _numbers("--budgets", text)
    return [b for b in DEFAULT_BUDGETS if b * costs[-1] >= costs[0]] or [1.0]
