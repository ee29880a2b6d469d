"""Per-image results: one row per test image with its decision at each reported budget.

A Parquet file, which pandas and most other tools read. The columns are `index`, `label` and, for a
budget of 30%, `budget_30_exit`, `budget_30_prediction`, `budget_30_confidence`, `budget_30_macs`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.budget import Decisions
from imta_jax.runtime.files import replacing

if TYPE_CHECKING:
    import pandas as pd


def budget_prefix(budget: float) -> str:
    """Prefix of a budget's columns: 0.3 -> `budget_30`, 0.125 -> `budget_12.5`.

    Args:
      budget: fraction of the last exit's multiply-adds, above 0 and at most 1.

    Returns:
      The prefix.

    Raises:
      ValueError: a budget outside that range.
    """
    if not 0 < budget <= 1:
        raise InputError(
            f"budget={budget}; expected a fraction of the last exit's multiply-adds, "
            "above 0 and at most 1, e.g. 0.3"
        )
    return f"budget_{100 * budget:g}"


def write_samples(
    path: str | Path,
    *,
    index: ArrayLike,
    labels: ArrayLike,
    decisions_by_budget: Mapping[float, Decisions],
) -> None:
    """Writes the table atomically as Parquet.

    Args:
      path: the file. Its folder is created.
      index: [N] position of each image in its split, at least 0 and unique.
      labels: [N] class of each image, from 0.
      decisions_by_budget: by budget (fraction of the last exit's multiply-adds), decisions for the
        N images with costs in multiply-adds.

    Raises:
      ValueError: arrays of different lengths, an index that repeats or is negative, or a budget
        outside its range.
    """
    import pyarrow  # Imported late because it takes a second.
    from pyarrow import parquet

    table = pyarrow.table(samples_columns(index, labels, decisions_by_budget))
    with replacing(path) as temporary:
        parquet.write_table(table, temporary)


def samples_columns(
    index: ArrayLike, labels: ArrayLike, decisions_by_budget: Mapping[float, Decisions]
) -> dict[str, np.ndarray]:
    """The columns of `write_samples`, N values each; arguments and errors as there."""
    index, labels = np.asarray(index), np.asarray(labels)
    _check_index(index)
    columns = {"index": index.astype(np.int32), "label": labels.astype(np.int32)}
    for budget, decisions in decisions_by_budget.items():
        columns.update(_columns(budget_prefix(budget), decisions))
    for name, values in columns.items():
        if values.shape != index.shape:
            raise InputError(
                f"column {name} has shape {values.shape}, the index {index.shape}; "
                "expected one value per image: are both of the same split?"
            )
    return columns


def read_samples(path: str | Path) -> "pd.DataFrame":
    """Reads the table of `write_samples`, one row per test image.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not Parquet or has no columns `index` and `label`.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ValueError as error:
        raise InputError(f"{path}: not a Parquet file ({error}); evaluate again") from error
    missing = {"index", "label"} - set(table.columns)
    if missing:
        raise InputError(
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
        raise InputError(
            f"index is {index.dtype} {index.shape}; expected integers [images], at least one"
        )
    if index.min() < 0:
        position = int(np.argmin(index))
        raise InputError(
            f"index {index[position]} at position {position} marks padding; remove padding first"
        )
    values, counts = np.unique(index, return_counts=True)
    if counts.max() > 1:
        raise InputError(
            f"index {values[counts > 1][0]} appears {counts[counts > 1][0]} times; "
            "each test image must be counted exactly once"
        )
