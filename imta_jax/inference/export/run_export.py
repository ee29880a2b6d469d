"""Exports a finished run as a folder that runs without the training code.

`python -m imta_jax.inference.export RUN FOLDER` exports a finished run, and
`python -m imta_jax.inference FOLDER images/*.jpg --budget=0.5` uses it. `--format=onnx` writes a
folder for ONNX Runtime.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imta_jax.errors import UserError, message_of
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.prepare import check_machine_files
from imta_jax.inference.export.quantized_run import evaluate_quantized
from imta_jax.inference.export.writer import (
    DEFAULT_PLATFORMS,
    FORMATS,
    WEIGHTS,
    check_choices,
    export_classifier,
)
from imta_jax.inference.finished_run import FinishedRun, load_finished_run
from imta_jax.runtime.paths import local_path, path_argument
from imta_jax.training.network_record import PACKAGE

# What the manifest repeats of each exit in `results.json`.
_ACCURACIES = ("top1", "top5", "validation_top1", "ece")


def export_run(
    workdir: str | Path,
    folder: str | Path,
    *,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    dtype: str = "float32",
    overwrite: bool = False,
    format: str = "stablehlo",
    weights: str = "float32",
    profile: bool = False,
    compiled: Sequence[float] = (),
) -> None:
    """Exports the network that a finished run evaluated, with thresholds for all its budgets.

    Args:
      workdir: folder of a run that was trained and evaluated.
      folder: folder to write.
      platforms: platforms to compile for, some of `writer.PLATFORMS`.
      dtype: in which the backbone computes, "float32" or "bfloat16". Thresholds and accuracies are
        those of the evaluation in float32.
      overwrite: whether an earlier export may be replaced.
      format: see `export_classifier`.
      weights: "float32", or "int8" to round the kernels per output channel. The thresholds and
        accuracies are then those of the rounded network, computed on the run's dataset.
      profile: see `export_classifier`.
      compiled: see `export_classifier`.

    Raises:
      FileNotFoundError: the run is not finished.
      FileExistsError: the folder exists.
      ValueError: unknown platform or dtype, or results of another network.
    """
    folder = local_path("folder", folder)
    export_folder.check_replaceable(folder, overwrite)
    check_choices(platforms, dtype, format, weights)
    check_machine_files(platforms, format, profile=profile, compiled=compiled)
    run = load_finished_run(workdir)
    points, rows = run.points, run.results["exits"]
    if weights == "int8":
        points, rows = evaluate_quantized(run)
    export_classifier(
        run.classifier,
        folder,
        points=points,
        class_names=run.meta["class_names"],
        mean=run.meta["mean"],
        std=run.meta["std"],
        preprocessing=run.transform,
        platforms=platforms,
        dtype=dtype,
        accuracy=[{name: row[name] for name in _ACCURACIES} for row in rows],
        origin=_origin(run),
        exit_rule=run.exit_rule,
        overwrite=overwrite,
        format=format,
        weights=weights,
        results=run.results,
        profile=profile,
        compiled=compiled,
    )


def _origin(run: FinishedRun) -> dict[str, Any]:
    """Dataset and checkpoint; for custom components, also the network."""
    origin = {name: run.meta[name] for name in ("dataset", "phase", "epoch")}
    record = run.meta.get("network", {})
    if {record.get("backbone_class"), record.get("heads_class")} <= {PACKAGE, None}:
        return origin
    return origin | {name: run.meta[name] for name in ("model", "heads", "network")}


def _budgets(text: str) -> tuple[float, ...]:
    return tuple(float(budget) for budget in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imta_jax.inference.export",
        description="Writes the network of a finished run as a folder for imta_jax.inference.",
    )
    parser.add_argument(
        "workdir",
        type=path_argument("workdir"),
        help="folder of a run that was trained and evaluated",
    )
    parser.add_argument("folder", type=path_argument("folder"), help="folder to write")
    parser.add_argument(
        "--platforms",
        default=",".join(DEFAULT_PLATFORMS),
        help="separated by commas (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument(
        "--format",
        default=FORMATS[0],
        help=f"{', '.join(FORMATS)}: programs for imta_jax.inference (default); ONNX models with a "
        "runner; or the variables by name",
    )
    parser.add_argument(
        "--weights",
        default=WEIGHTS[0],
        help="float32 (default), or int8: kernels rounded per output channel, with thresholds "
        "chosen again on the run's validation images",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="measure the stages on this machine and store their times, for machines like this one",
    )
    parser.add_argument(
        "--compiled",
        type=_budgets,
        default=(),
        metavar="BUDGETS",
        help="budgets, e.g. 0.3,0.5, whose programs are compiled on this machine and stored, for "
        "machines like this one; implies --profile",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Exports a run from the command line. Exits with code 2 if an argument is invalid."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs many lines per checkpoint
    platforms = [name for name in arguments.platforms.split(",") if name]
    try:
        export_run(
            arguments.workdir,
            arguments.folder,
            platforms=platforms,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
            format=arguments.format,
            weights=arguments.weights,
            profile=arguments.profile,
            compiled=arguments.compiled,
        )
    except (UserError, OSError) as error:
        parser.error(message_of(error))
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    target = f"for {', '.join(platforms)}" if arguments.format == FORMATS[0] else arguments.format
    print(f"{arguments.folder}: {size / 1e6:.1f} MB, {target}")
