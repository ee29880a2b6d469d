"""Checks of the threshold command: options without effect, and files that are probably mistaken."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.budget import Outcomes
from imta_jax.evaluation.methods.comparison_record import display_name
from imta_jax.evaluation.methods.risk_control import GUARANTEES
from imta_jax.evaluation.predictions import Predictions, exits_in_unit_interval

DEFAULT_METHOD = "sweep"


def prints_guarantee(arguments: argparse.Namespace) -> bool:
    """Whether the output has a method of risk control."""
    return bool(
        not arguments.format or arguments.out or (arguments.method or DEFAULT_METHOD) in GUARANTEES
    )


def check_options(arguments: argparse.Namespace) -> None:
    """Rejects options that have no effect on the output.

    Raises:
      InputError: `--method` without `--format`; or `--format` without `--out`, and an option of
        another kind of method.
    """
    if not arguments.format:
        if arguments.method:
            raise InputError(
                f"--method={display_name(arguments.method)} has no effect without --format: the "
                "table has all methods; add --format=numpy or --format=torch, or omit --method"
            )
        return
    method = arguments.method or DEFAULT_METHOD
    used = {
        "--budgets": bool(arguments.out) or method not in GUARANTEES,
        "--tolerance": bool(arguments.out) or method in GUARANTEES,
        "--confidence": bool(arguments.out) or method in set(GUARANTEES) - {"expectation"},
    }
    for option, has_effect in used.items():
        value = getattr(arguments, option.removeprefix("--"))
        if value is not None and not has_effect:
            raise InputError(
                f"{option}={value} has no effect on --format={arguments.format} with "
                f"--method={display_name(method)}; omit it, or choose another --method"
            )


def split_warnings(
    validation: Predictions | Outcomes, test: Predictions | Outcomes, arguments: argparse.Namespace
) -> Iterator[str]:
    """Messages about equal splits, and about logits that may be the outputs of a sigmoid."""
    if all(np.array_equal(a, b) for a, b in zip(validation, test, strict=True)):
        yield (
            f"{arguments.validation} and {arguments.test} have equal content: accuracies and "
            "guarantees are measured on the images that chose the thresholds, and are too high; "
            "pass other images as test images"
        )
    for path, split in {arguments.validation: validation, arguments.test: test}.items():
        if isinstance(split, Predictions) and (exits := exits_in_unit_interval(split.logits)):
            yield (
                f"{Path(path)}: all logits of exits {', '.join(map(str, exits))} are in 0..1; "
                "expected the values before the softmax. If they are outputs of a sigmoid, pass "
                "np.log(p / (1 - p)), with p clipped to 1e-7..1 - 1e-7"
            )
