"""A trained run becomes a folder that runs without the code that trained it.

`python -m imta_jax.inference.export RUN FOLDER` exports a finished run, and
`python -m imta_jax.inference FOLDER pictures/*.jpg --budget=0.5` uses it.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imta_jax.data import preprocessing_from
from imta_jax.evaluation import ExitCosts, exit_costs, operating_points, read_budget_curve
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.writer import (
    DEFAULT_PLATFORMS,
    check_choices,
    export_classifier,
)
from imta_jax.training import load_classifier

_AS_EVALUATED = ("top1", "top5", "validation_top1", "ece")


def export_run(
    workdir: str | Path,
    folder: str | Path,
    *,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Exports the network that a finished run evaluated, with thresholds for all its budgets.

    Args:
      workdir: of a run that was trained and evaluated.
      folder: to write; see `export_folder`.
      platforms: that the programs are made for, of `classifier_export.PLATFORMS`.
      dtype: in which the backbone computes, "float32" or "bfloat16". Thresholds and accuracies are
        those of the evaluation, in float32.
      overwrite: replaces an earlier export.

    Raises:
      FileNotFoundError: the run is not finished.
      FileExistsError: the folder is there.
      ValueError: an unknown platform or type, results of another network.
    """
    workdir = Path(workdir)
    export_folder.check_replaceable(folder, overwrite)
    check_choices(platforms, dtype)
    config, results = (_read(workdir, name) for name in ("config.json", "results.json"))
    phase = results["environment"]["evaluated_phase"]
    classifier, meta = load_classifier(workdir / phase, config["evaluation"]["checkpoint"])
    costs = exit_costs(classifier)
    _check_results(workdir, results, phase, meta, costs)
    export_classifier(
        classifier,
        folder,
        points=operating_points(read_budget_curve(workdir), costs.macs[-1]),
        class_names=meta["class_names"],
        mean=meta["mean"],
        std=meta["std"],
        preprocessing=preprocessing_from(config["data"]),
        platforms=platforms,
        dtype=dtype,
        accuracy=[{name: row[name] for name in _AS_EVALUATED} for row in results["exits"]],
        origin={name: meta[name] for name in ("dataset", "phase", "epoch")},
        overwrite=overwrite,
    )


def _check_results(
    workdir: Path, results: Mapping[str, Any], phase: str, meta: Mapping[str, Any], costs: ExitCosts
) -> None:
    evaluated = results["phases"][phase]["checkpoint_epoch"]
    if evaluated != meta["epoch"]:
        raise ValueError(
            f"{workdir}/results.json is of epoch {evaluated} of {phase}, and the checkpoint is of "
            f"epoch {meta['epoch']}; evaluate it again (delete results.json, --mode=evaluate)"
        )
    macs = [row["macs"] for row in results["exits"]]
    if macs != costs.macs.tolist():
        raise ValueError(
            f"{workdir}/results.json is of another network: multiply-adds {macs}, and those of the "
            f"checkpoint's are {costs.macs.tolist()}"
        )


def _read(workdir: Path, name: str) -> dict[str, Any]:
    path = workdir / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; expected the folder of a finished run: train and evaluate it "
            f"first (launch.py --workdir={workdir})"
        )
    return json.loads(path.read_text())


def main(argv: Sequence[str] | None = None) -> None:
    """Exports a run from the command line; what a user got wrong ends with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.inference.export",
        description="Writes the network of a finished run as a folder for imta_jax.inference.",
    )
    parser.add_argument("workdir", help="of a run that was trained and evaluated")
    parser.add_argument("folder", help="to write")
    parser.add_argument(
        "--platforms", default=",".join(DEFAULT_PLATFORMS), help="default: %(default)s"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    given = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.WARNING)  # each checkpoint read is many lines
    platforms = [name for name in given.platforms.split(",") if name]
    try:
        export_run(
            given.workdir,
            given.folder,
            platforms=platforms,
            dtype=given.dtype,
            overwrite=given.overwrite,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    size = sum(path.stat().st_size for path in Path(given.folder).iterdir())
    print(f"{given.folder}: {size / 1e6:.1f} MB, for {', '.join(platforms)}")
