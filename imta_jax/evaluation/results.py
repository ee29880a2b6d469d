"""Reading back the budget curve of a run's `results.json`."""

import json
from pathlib import Path
from typing import Any

from imta_jax.evaluation.budget import budget_curve
from imta_jax.evaluation.predictions import load_predictions


def read_budget_curve(workdir: str | Path) -> list[dict[str, Any]]:
    """Budget curve rows of an evaluated run, with all keys of `BudgetCurve.rows`.

    A `results.json` written before the rows had validation costs is completed from the run's saved
    logits.

    Args:
      workdir: folder of a run that was evaluated.

    Returns:
      The rows, costs in multiply-adds (`mean_macs`).

    Raises:
      FileNotFoundError: the run was not evaluated.
    """
    workdir = Path(workdir)
    path = workdir / "results.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: the run was not evaluated. Run --mode=evaluate first"
        )
    results = json.loads(path.read_text())
    rows = results["budget_curve"]
    if all("validation_exit_fractions" in row for row in rows):
        return rows
    macs = [row["macs"] for row in results["exits"]]
    validation, test = (
        load_predictions(workdir / "evaluation" / f"logits_{split}.npz")
        for split in ("validation", "test")
    )
    quotas = [row["quota"] for row in rows]
    return budget_curve(validation, test, macs, quotas=quotas).rows("mean_macs")
