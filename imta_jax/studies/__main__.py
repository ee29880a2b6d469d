"""Draws the paper's tables and figures from finished studies.

    python -m imta_jax.studies runs/ablation/ablation/study.json --out=runs/study_report

Tables and figures without a study are empty and show the command that produces them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imta_jax.errors import InputError, UserError, message_of
from imta_jax.runtime.interrupts import interrupts_reported
from imta_jax.runtime.optional_packages import require
from imta_jax.runtime.paths import path_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads studies and writes their report.

    Args:
      arguments: command-line arguments without the program name; None takes `sys.argv`.

    Returns:
      The exit status: 0, or 2 after printing an error to standard error where a file is missing or
      not a study.
    """
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.studies",
        description="Draw Tables 1-3 and Figures 2-7 of the paper from studies, with the paper's "
        "own numbers for comparison.",
    )
    parser.add_argument(
        "studies",
        nargs="*",
        type=path_argument("STUDY.json"),
        metavar="STUDY.json",
        help="studies, in any order",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=path_argument("--out"),
        metavar="DIR",
        help="folder to write into",
    )
    options = parser.parse_args(arguments)
    try:
        require("report", "drawing studies")
        from imta_jax.studies.report.page import write_study_report

        studies = [_read_study(path) for path in options.studies]
        out: Path = options.out
        if out.exists() and not out.is_dir():
            raise InputError(f"--out must be a folder; found a file: {out}")
        page = write_study_report(studies, out)
    except (UserError, OSError) as error:
        print(f"{parser.prog}: error: {message_of(error)}", file=sys.stderr)
        return 2
    print(page)
    return 0


def _read_study(path: Path) -> Any:
    """The content of a study file, after checking it."""
    from imta_jax.studies.report.parsing import parse_study, read_study

    study = read_study(path)
    parse_study(study, str(path))
    return study


if __name__ == "__main__":
    with interrupts_reported("python -m imta_jax.studies"):
        sys.exit(main())
