"""One row per test image: its label and, at each reported budget, what the adaptive network did.

The columns, in a Parquet file that pandas and most other tools read: `index`, `label`, and for a
budget of 30% `budget_30_exit`, `budget_30_prediction`, `budget_30_confidence`, `budget_30_macs`.
Which thresholds belong to a budget is decided elsewhere (`adaptive`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imta_jax.evaluation.budget import Decisions
from imta_jax.runtime.files import replacing

if TYPE_CHECKING:
    import pandas as pd


def budget_prefix(budget: float) -> str:
    """How the columns of a budget begin: 0.3 -> `budget_30`, 0.125 -> `budget_12.5`.

    Args:
      budget: fraction of the last exit's multiply-adds, above 0, at most 1.

    Raises:
      ValueError: a budget outside that range.
    """
    if not 0 < budget <= 1:
        raise ValueError(
            f"budget {budget}; expected a fraction of the last exit's multiply-adds, "
            "above 0 and at most 1, e.g. 0.3"
        )
    return f"budget_{100 * budget:g}"


def write_samples(
    path: str | Path,
    *,
    index: np.ndarray,
    labels: np.ndarray,
    decisions_by_budget: Mapping[float, Decisions],
) -> None:
    """Writes the table as Parquet: whole or, if interrupted, not at all.

    Args:
      path: the file; its folder is made if missing.
      index: integers [N], position of each image in its split, each from 0 and only once.
      labels: integers [N], class of each image, from 0.
      decisions_by_budget: budget, a fraction of the last exit's multiply-adds, -> decisions whose
        arrays are [N] and whose costs are multiply-adds, whole numbers.

    Raises:
      ValueError: arrays of other lengths, an index that repeats or is padding, an unusable budget.
    """
    table = samples_table(index, labels, decisions_by_budget)
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def samples_table(
    index: np.ndarray, labels: np.ndarray, decisions_by_budget: Mapping[float, Decisions]
) -> "pd.DataFrame":
    """The table that `write_samples` writes, [N] rows; arguments and errors as there."""
    index, labels = np.asarray(index), np.asarray(labels)
    _check_index(index)
    columns = {"index": index.astype(np.int32), "label": labels.astype(np.int32)}
    for budget, decisions in decisions_by_budget.items():
        columns.update(_columns(budget_prefix(budget), decisions))
    for name, values in columns.items():
        if values.shape != index.shape:
            raise ValueError(
                f"column {name} has shape {values.shape}, the index {index.shape}; "
                "expected one value per image: are both of the same split?"
            )
    import pandas as pd  # not before it is needed: it takes a second

    return pd.DataFrame(columns)


def read_samples(path: str | Path) -> "pd.DataFrame":
    """Reads the table written by `write_samples`, one row per test image.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not Parquet or has no columns `index` and `label`.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ValueError as error:
        raise ValueError(f"{path}: not a Parquet file ({error}); evaluate again") from error
    missing = {"index", "label"} - set(table.columns)
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(sorted(missing))} among {list(table.columns)}; "
            "expected a file written by write_samples"
        )
    return table


def _columns(prefix: str, decisions: Decisions) -> dict[str, np.ndarray]:
    return {
        f"{prefix}_exit": np.asarray(decisions.exit, np.int16),
        f"{prefix}_prediction": np.asarray(decisions.prediction, np.int32),
        f"{prefix}_confidence": np.asarray(decisions.confidence, np.float32),
        f"{prefix}_macs": np.asarray(decisions.cost, np.int64),
    }


def _check_index(index: np.ndarray) -> None:
    if index.ndim != 1 or index.size == 0 or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"index is {index.dtype} {index.shape}; expected integers [images], at least one"
        )
    if index.min() < 0:
        row = int(np.argmin(index))
        raise ValueError(f"index {index[row]} in row {row} marks padding; drop those rows first")
    values, counts = np.unique(index, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"index {values[counts > 1][0]} is there {counts[counts > 1][0]} times; "
            "each test image must be counted exactly once"
        )
