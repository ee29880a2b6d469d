"""Size, accuracy and speed of exports: StableHLO and ONNX, with float32 and int8 weights.

The network is a pretrained one. Thresholds are chosen on its validation images, for int8 weights on
the logits of the rounded network, which ONNX Runtime computes. Speeds are measured in turn, on test
images, at a budget of half.

    python benchmarks/export_formats.py --out=benchmarks/results/export_formats.json
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime

from benchmarks import measurement, result_file
from imta_jax.data import Split, load_dataset
from imta_jax.data.pipeline.evaluation_transform import transform_from_dict
from imta_jax.evaluation import (
    Predictions,
    anytime_accuracy,
    best_within_budget,
    budget_curve,
    exit_costs,
    operating_points,
)
from imta_jax.inference import export_classifier, load_exported
from imta_jax.inference.export.onnx_runner import Network
from imta_jax.pretrained import Pretrained, load_pretrained

_BATCH = 250
BUDGETS = (0.3, 0.5, 1.0)
TARGETS = {"int8_size_ratio": "at most 0.3", "int8_accuracy_change": "at least -0.5 points"}


def logits_of(network: Network, split: Split) -> Predictions:
    """Logits of all exits by ONNX Runtime, and labels."""
    batches = []
    for start in range(0, len(split), _BATCH):
        state, logits = [split.array[start : start + _BATCH]], []
        for stage in network.stages:
            names = [tensor.name for tensor in stage.get_inputs()]
            *state, of_exit = stage.run(None, dict(zip(names, state, strict=True)))
            logits.append(of_exit)
        batches.append(np.stack(logits))
    return Predictions(np.concatenate(batches, axis=1), split.labels)


def evaluate(network: Network, costs: Any, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Accuracies of the exits and at budgets, and the operating points."""
    validation, test = (logits_of(network, splits[name]) for name in ("validation", "test"))
    curve = budget_curve(validation, test, costs)
    points = operating_points(curve.rows("mean_macs"), costs.macs[-1])
    return {
        "points": points,
        "exits": [float(a) for a in anytime_accuracy(test)],
        "validation": [float(a) for a in anytime_accuracy(validation)],
        "budgets": {str(b): best_within_budget(points, b).top1 for b in BUDGETS},
    }


def export(network: Pretrained, points: Any, folder: Path, **options: Any) -> float:
    """Exports the network; returns the megabytes of its files, without the readme and checksums."""
    meta = network.meta
    transform = transform_from_dict(
        meta["evaluation_transform"], tuple(meta["image_shape"]), version=2
    )
    export_classifier(
        network.classifier,
        folder,
        points=points,
        class_names=meta["class_names"],
        mean=meta["mean"],
        std=meta["std"],
        preprocessing=transform,
        platforms=("cpu",),
        origin={name: meta[name] for name in ("dataset", "phase", "epoch")},
        results=network.results,
        **options,
    )
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure(name: str, source: str, options: Any, folder: Path) -> list[dict[str, Any]]:
    """Exports a network in all formats; returns one row per format and type of weights."""
    network = load_pretrained(name)
    dataset = load_dataset({"source": source, "validation_examples": options.validation})
    splits = dict(dataset.splits)
    if options.test:
        splits["test"] = splits["test"].select(np.arange(options.test))
    rows, runners, costs = [], {}, exit_costs(network.classifier)
    recorded = operating_points(network.results["budget_curve"], costs.macs[-1])
    for weights in ("float32", "int8"):
        first = folder / f"first_{weights}"
        export(network, recorded, first, format="onnx", weights=weights)
        results = evaluate(Network(first), costs, splits)
        for kind in ("stablehlo", "onnx"):
            path = folder / f"{kind}_{weights}"
            megabytes = export(network, results["points"], path, format=kind, weights=weights)
            row = {"part": name, "format": kind, "weights": weights, "MB": megabytes}
            row |= {"exit": dict(enumerate(results["exits"], 1)), "budget": results["budgets"]}
            rows.append(row | {"validation": dict(enumerate(results["validation"], 1))})
            if options.rounds and (kind, weights) != ("stablehlo", "int8"):  # the same programs
                runners[kind, weights] = runner_of(kind, path, splits["test"].array[:256])
    for batch in (1, 32) if options.rounds else ():
        add_speeds(rows, runners, batch, options.rounds)
    return rows


def runner_of(kind: str, path: Path, images: np.ndarray) -> Any:
    """A function of the batch size that classifies the images in batches of that size."""
    if kind == "onnx":
        predict = Network(path, 0.5).predict
    else:
        adaptive = load_exported(path, check_golden=False).adaptive(
            0.5, max_batch_size=32, batch_sizes=(1, 16)
        )
        predict = adaptive.predict

    def classify(batch: int) -> None:
        for start in range(0, 64 if batch == 1 else len(images), batch):
            predict(images[start : start + batch])

    return classify


def add_speeds(rows: list[dict[str, Any]], runners: Any, batch: int, rounds: int) -> None:
    """Measures images per second of all runners in turn."""
    count = 64 if batch == 1 else 256

    def timed(runner: Any) -> Any:
        def run(_: int) -> float:
            before = measurement.clocks()[0]
            runner(batch)
            return count / (measurement.clocks()[0] - before)

        return run

    speeds = measurement.take_turns({k: timed(r) for k, r in runners.items()}, rounds)
    for row in rows:
        values = speeds.get((row["format"], row["weights"]))
        if values is not None:
            row[f"images/s, batch {batch}"] = measurement.spread(values)


def main() -> None:
    """Measures both networks and writes the result."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument("--network", default="quickstart", help="of imta_jax.pretrained")
    parser.add_argument("--data", default="fashion_mnist_small", help="config.data.source")
    parser.add_argument("--validation", type=int, default=1000, help="images held out")
    parser.add_argument("--test", type=int, default=0, help="test images; 0 for all")
    parser.add_argument("--rounds", type=int, default=5, help="of speeds; 0 for none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.network, options.data, options, Path(folder))
    by_kind = {(row["format"], row["weights"]): row for row in rows}
    full, small = by_kind["onnx", "float32"], by_kind["onnx", "int8"]
    changes = [small["budget"][b] - full["budget"][b] for b in full["budget"]]
    batches = (1, 32) if options.rounds else ()
    speeds = {f"onnx_vs_engine_batch{n}": _ratio(by_kind, n) for n in batches}
    summary = {
        "int8_size_ratio": small["MB"] / full["MB"],
        "int8_accuracy_change": min(changes),
        **speeds,
    }
    result = {"seeds": [0], "rows": rows, "summary": summary, "targets": TARGETS}
    result_file.write_result(options.out, (np, onnxruntime), result)


def _ratio(by_kind: Any, batch: int) -> float:
    """Median speed of ONNX Runtime over that of the engine, float32."""
    onnx, engine = (by_kind[k, "float32"] for k in ("onnx", "stablehlo"))
    name = f"images/s, batch {batch}"
    return onnx[name]["median"] / engine[name]["median"]


if __name__ == "__main__":
    main()
