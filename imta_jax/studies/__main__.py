"""Draws the paper's tables and figures from studies.

    python -m imta_jax.studies runs/ablation/study.json runs/exits/study.json --out=evidence

Without any study every table and figure is there, empty, with the command that fills it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from imta_jax.studies.report.page import write_evidence
from imta_jax.studies.report.record import read_json, study_from


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads studies and writes the evidence.

    Args:
      arguments: the command line without the program's name; None takes that of the process.

    Returns:
      0, or 2 where a file is missing or no study, which is said on the standard error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.studies",
        description="Tables 1-3 and Figures 2-7 of the paper from studies, ours beside its own.",
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY.json", help="studies, in any order")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write into")
    options = parser.parse_args(arguments)
    try:
        studies = [_checked(path) for path in options.studies]
        out = Path(options.out)
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out: expected a folder, found a file: {out}")
    except (FileNotFoundError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(write_evidence(studies, out))
    return 0


def _checked(path: str) -> dict:
    """A study as read, checked under its file's name."""
    study = read_json(path)
    study_from(study, path)
    return study


if __name__ == "__main__":
    sys.exit(main())
