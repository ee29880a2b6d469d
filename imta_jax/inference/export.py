"""A trained network becomes a folder that runs without the code that trained it.

`python -m imta_jax.inference.export runs/cifar10 cifar10.exported` exports a finished run, and
`python -m imta_jax.inference cifar10.exported pictures/*.jpg --budget=0.5` uses it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

import imta_jax
from imta_jax.data import Preprocessing, RandomAreaCrop, preprocessing_from
from imta_jax.errors import unknown_name
from imta_jax.evaluation import ExitCosts, budget_curve, exit_costs, load_predictions
from imta_jax.inference import export_folder
from imta_jax.inference.classifier_stages import staged_classifier
from imta_jax.inference.operating_points import OperatingPoint, worthwhile
from imta_jax.inference.staged import StagedNetwork
from imta_jax.models import MultiExitClassifier
from imta_jax.training import load_classifier

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
_DTYPES = ("float32", "bfloat16")
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
      platforms: that the programs are made for, of `PLATFORMS`.
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
    _check_choices(platforms, dtype)
    config, results = (_read(workdir, name) for name in ("config.json", "results.json"))
    phase = results["environment"]["evaluated_phase"]
    classifier, meta = load_classifier(workdir / phase, config["evaluation"]["checkpoint"])
    costs = exit_costs(classifier)
    _check_results(workdir, results, phase, meta, costs)
    export_classifier(
        classifier,
        folder,
        points=_points(workdir / "evaluation", costs, config["evaluation"]["quotas"]),
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


def export_classifier(
    classifier: MultiExitClassifier,
    folder: str | Path,
    *,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    preprocessing: Preprocessing,
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    dtype: str = "float32",
    accuracy: Sequence[Mapping[str, float]] = (),
    origin: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a classifier as programs, weights and what is needed to use them.

    Args:
      classifier: phase I or II; it is left as it is.
      folder: to write, whole or not at all; see `export_folder`.
      points: thresholds for several budgets.
      class_names: [K].
      mean: of the pixels per channel, 0..1, as in training.
      std: likewise, above 0.
      preprocessing: what the evaluation showed of an image.
      platforms: that the programs are made for, of `PLATFORMS`.
      dtype: in which the backbone computes, "float32" or "bfloat16".
      accuracy: per exit, in percent by name, for the record.
      origin: of the weights, for the record.
      overwrite: replaces an earlier export.

    Raises:
      FileExistsError: the folder is there.
      ValueError: an unknown platform or type; names, constants or thresholds that do not fit.
    """
    _check_choices(platforms, dtype)
    _check_fit(classifier, points, class_names, mean, std)
    costs = _describe_exits(exit_costs(classifier), accuracy)
    network = staged_classifier(classifier, dtype=jnp.dtype(dtype))
    arrays, names = _named_weights(network)
    with export_folder.written_folder(folder, overwrite=overwrite) as partial:
        programs = _programs(network, platforms)
        for stage, program in enumerate(programs):
            (partial / export_folder.program_name(stage)).write_bytes(program.serialize())
        np.savez(partial / export_folder.WEIGHTS, **arrays)
        manifest = {
            "format": export_folder.FORMAT,
            "format_version": export_folder.VERSION,
            "name": network.name,
            "dtype": dtype,
            "evaluated_dtype": "float32",
            "image_shape": list(network.image_shape),
            "class_names": [str(name) for name in class_names],
            "preprocessing": _describe_preprocessing(preprocessing, mean, std),
            "exits": costs,
            "operating_points": [vars(point) for point in worthwhile(points)],
            "platforms": list(platforms),
            "calling_convention_version": programs[0].calling_convention_version,
            "versions": _versions(),
            "origin": dict(origin or {}),
            "stages": [{"weights": of_stage} for of_stage in names],
        }
        export_folder.write_json(partial / export_folder.MANIFEST, manifest)


def _programs(network: StagedNetwork, platforms: Sequence[str]) -> list[jax.export.Exported]:
    """Each stage for any number of images; the first takes normalised floats [b, H, W, C]."""
    (count,) = jax.export.symbolic_shape("b")
    rows = (jax.ShapeDtypeStruct((count, *network.image_shape), network.image_dtype),)
    programs = []
    for stage, weights in zip(network.stages, network.weights, strict=True):
        shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
        program = jax.export.export(jax.jit(stage), platforms=tuple(platforms))(shapes, rows)
        programs.append(program)
        handed_on, _ = jax.tree.unflatten(program.out_tree, program.out_avals)
        rows = tuple(jax.ShapeDtypeStruct(row.shape, row.dtype) for row in handed_on)
    return programs


def _named_weights(network: StagedNetwork) -> tuple[dict[str, np.ndarray], list[list[str]]]:
    """All arrays by name, each once, and per stage the names of those it reads."""
    names: dict[int, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for of_stage in network.weights:
        for weight in of_stage:
            if id(weight) not in names:
                name = names[id(weight)] = f"weight_{len(names):04d}"
                array = np.asarray(weight)
                # NumPy's files know no bfloat16.
                arrays[name] = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    return arrays, [[names[id(weight)] for weight in of_stage] for of_stage in network.weights]


def _points(folder: Path, costs: ExitCosts, quotas: Sequence[float]) -> list[OperatingPoint]:
    """Every point of the run's budget curve, with its cost on the validation images."""
    validation, test = (
        load_predictions(folder / f"logits_{split}.npz") for split in ("validation", "test")
    )
    curve = budget_curve(validation, test, costs, quotas=quotas)
    return [
        OperatingPoint(
            budget=float(curve.validation_cost[i] / costs.macs[-1]),
            thresholds=tuple(curve.thresholds[i].tolist()),
            exit_fractions=tuple(curve.validation_exit_fractions[i].tolist()),
            validation_top1=float(curve.validation_accuracy[i]),
            top1=float(curve.accuracy[i]),
        )
        for i in range(len(curve.quota))
    ]


def _describe_preprocessing(
    preprocessing: Preprocessing, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    resize = preprocessing.resize if isinstance(preprocessing, RandomAreaCrop) else None
    return {
        "description": (
            f"The shorter side to {resize} pixels (bilinear, antialiased), the central ones."
            if isinstance(preprocessing, RandomAreaCrop)
            else "The image as it is."
        )
        + " Then (pixel / 255 - mean) / std per channel.",
        "resize": resize,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


def _describe_exits(
    costs: ExitCosts, accuracy: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    rows = [
        {
            "exit": i + 1,
            "macs": int(costs.macs[i]),
            "published_ops": int(costs.published_ops[i]),
            "params": int(costs.params[i]),
        }
        for i in range(len(costs.macs))
    ]
    return [row | dict(more) for row, more in zip(rows, accuracy or [{}] * len(rows), strict=True)]


def _versions() -> dict[str, str]:
    return {
        "imta_jax": imta_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
    }


def _check_choices(platforms: Sequence[str], dtype: str) -> None:
    for platform in platforms:
        if platform not in PLATFORMS:
            raise unknown_name("platform", platform, PLATFORMS)
    if not platforms:
        raise ValueError(f"no platform to export for; expected some of {', '.join(PLATFORMS)}")
    if dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)


def _check_fit(
    classifier: MultiExitClassifier,
    points: Sequence[OperatingPoint],
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """What is handed over beside the classifier has to be of the same network."""
    exits, channels = classifier.num_exits, classifier.image_shape[2]
    for name, found, expected in [
        ("class_names", len(class_names), classifier.num_classes),
        ("mean", len(mean), channels),
        ("std", len(std), channels),
        *(("thresholds", len(point.thresholds), exits) for point in points),
        *(("exit_fractions", len(point.exit_fractions), exits) for point in points),
    ]:
        if found != expected:
            raise ValueError(f"{name}: expected {expected} for this network; found {found}")
    if not points:
        raise ValueError("no operating point; expected thresholds for at least one budget")


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


if __name__ == "__main__":
    sys.exit(main())
