"""Measures the time that early exits save, relative to the fastest full network.

Takes a finished run, classifies its test images at budgets from 20% to 100% of the full network's
multiply-adds for several batch sizes, and compares throughput and latency with the full network
compiled as one program. *Efficiency* is the measured speed-up over the speed-up in multiply-adds.
The full network runs with its best slicing: slices of several sizes, one or two at a time.

    python launch.py --config=configs/cifar10.py --workdir=runs/cifar10 \
        --config.data.source=cifar10.npz --config.model.preset=cifar_5_exits \
        --config.phase_one.total_epochs=7 --config.phase_two.total_epochs=2
    python benchmarks/early_exit.py --run=runs/cifar10 --out=benchmarks/results/early_exit.json

All contenders take turns in one process. The figure is saved next to the JSON. `vs_cut_networks`
compares with networks that end at each exit, compiled as one program. It separates the cost of
stopping and compaction from the lower multiply-add rate of early stages.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from benchmarks import result_file
from benchmarks.measurement import Measurements, spread, take_turns
from imta_jax.data import load_dataset
from imta_jax.evaluation import load_predictions, outcomes
from imta_jax.evaluation.budget import curve_of_outcomes
from imta_jax.inference import AdaptiveClassifier, AdaptiveStream
from imta_jax.models import optimize_classifier
from imta_jax.nn.pixels import normalize
from imta_jax.report.style import new_figure, style_axes
from imta_jax.training import last_phase, load_classifier

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FULL = {"budgets": BUDGETS, "rounds": 7, "calls_of_one": 64, "streamed": 1536}
QUICK = FULL | {"budgets": (0.3, 0.5, 1.0), "rounds": 3, "calls_of_one": 32, "streamed": 512}
SLICES = (16, 32, 64, 256)
TARGETS = {
    "min_efficiency_batch256": "at least 0.9 (budgets 30-70%)",
    "min_speed_vs_full": "at least 0.95",
    "streaming_vs_batched": "at least 0.9",
}
NOTES = {
    "adaptive": "predict(images), from images to predictions in host memory, with its checks",
    "full": "the heads that the last exit needs, in one program, with the fastest slicing",
    "vs_cut_networks": "time of networks that end at the exits taken (one program, best "
    "slicing) over the measured time",
    "thresholds": "geometric sweep on validation images, the nearest point below the budget",
}


class Contenders:
    """A trained network and the programs that are timed on it.

    Args:
      run: folder of a finished run.
      dtype: compute dtype of the backbone.
      max_batch_size: largest batch size.
    """

    def __init__(self, run: Path, dtype: str, max_batch_size: int):
        config = json.loads((run / "config.json").read_text())
        which = config["evaluation"]["checkpoint"]
        self.classifier, self.meta = load_classifier(run / last_phase(config), which)
        self.images = load_dataset(config["data"]).splits["test"].images
        self.classifier.eval()
        self.classifier.compute_dtype = jnp.dtype(dtype)
        self.graphdef, self.state = nnx.split(self.classifier)
        self.settings = {"mean": self.meta["mean"], "std": self.meta["std"], "dtype": dtype}
        self.settings["max_batch_size"] = max_batch_size
        last_only = np.full(self.classifier.num_exits, 2.0)
        self.full = AdaptiveClassifier(self.classifier, last_only, **self.settings)
        self.network, self.macs = self.full.network, self.full.macs
        validation, test = (
            outcomes(load_predictions(run / "evaluation" / f"logits_{split}.npz"))
            for split in ("validation", "test")
        )
        self.curve = curve_of_outcomes(
            validation, test, self.macs, quotas=np.geomspace(0.02, 8, 400)
        )
        self.threads = ThreadPoolExecutor(2)

    def adaptive(self, budget: float) -> AdaptiveClassifier:
        """Compiled, at the sweep's nearest point below the budget; 1 is the full network."""
        if budget >= 1:
            self.full.warm_up()
            return self.full
        cost = self.curve.validation_cost / self.macs[-1]
        point = int(np.argmax(np.where(cost <= budget, cost, -1)))
        found = self.full.with_thresholds(
            self.curve.thresholds[point],
            exit_fractions=self.curve.validation_exit_fractions[point],
        )
        found.warm_up()
        return found

    def cut_at(self, last: int) -> Callable[[np.ndarray], jax.Array]:
        """The network up to exit `last` as one program: images -> labels and confidences."""

        def predict(state: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            network, carry = nnx.merge(self.graphdef, state, copy=True), None
            network = optimize_classifier(network)
            maps = network.stem(normalize(images, self.meta["mean"], self.meta["std"]))
            for i in range(last + 1):
                maps, logits, carry = network.advance(i, maps, carry)
            return logits.argmax(axis=-1), jax.nn.softmax(logits).max(axis=-1)

        program = jax.jit(predict)
        return lambda images: jax.device_get(program(self.state, images))

    def in_slices(self, last: int, batch_size: int) -> dict[str, Callable[[np.ndarray], Any]]:
        """Ways to run the cut network on a batch: by slice size, with one or two threads."""
        program = self.cut_at(last)
        ways: dict[str, Callable[[np.ndarray], Any]] = {}
        for size in sorted({min(size, batch_size) for size in (*SLICES, batch_size)}):
            for threads in (1, 2):
                if threads == 1 or batch_size // size > 1:
                    ways[f"slices of {size}, {threads} at a time"] = self._slicing(
                        program, size, threads
                    )
        return ways

    def _slicing(
        self, program: Callable[[np.ndarray], Any], size: int, threads: int
    ) -> Callable[[np.ndarray], Any]:
        run = self.threads.map if threads == 2 else map
        return lambda batch: list(
            run(program, [batch[i : i + size] for i in range(0, len(batch), size)])
        )


def timed(
    work: Callable[[np.ndarray], Any], images: np.ndarray, batch_size: int
) -> Callable[[int], Any]:
    """A contender of `take_turns` that returns seconds per image and median seconds per batch."""

    def measure(_: int) -> tuple[float, float]:
        each = []
        for begin in range(0, len(images), batch_size):
            start = time.perf_counter()
            work(images[begin : begin + batch_size])
            each.append(time.perf_counter() - start)
        return sum(each) / len(images), float(np.median(each))

    return measure


def throughput(
    contenders: Contenders, size: Mapping[str, Any], batch_size: int
) -> list[dict[str, Any]]:
    """One row per budget for one batch size."""
    calls = max(1, min(size["calls_of_one"], 256 // batch_size) if batch_size < 256 else 1)
    images = np.resize(contenders.images, (calls * batch_size, *contenders.images.shape[1:]))
    adaptive = {budget: contenders.adaptive(budget) for budget in size["budgets"]}
    work: dict[Any, Callable[[np.ndarray], Any]] = {b: a.predict for b, a in adaptive.items()}
    for last in range(len(contenders.macs)):
        work |= {(last, way): run for way, run in contenders.in_slices(last, batch_size).items()}
    found = take_turns(
        {k: timed(run, images, batch_size) for k, run in work.items()}, size["rounds"]
    )
    best = [_fastest(found, last) for last in range(len(contenders.macs))]
    rows = []
    for budget, classifier in adaptive.items():
        predictions = classifier.predict(images)
        rows.append(
            {"part": "throughput", "batch_size": batch_size, "budget": budget}
            | _row(found, budget, best, predictions.exit, contenders.macs)
        )
    return rows


def _fastest(found: Measurements, last: int) -> Any:
    """The way to run the network up to exit `last` with the lowest median time."""
    ways = [key for key in found if isinstance(key, tuple) and key[0] == last]
    return min(ways, key=lambda way: np.median(found[way][:, 0]))


def _row(
    found: Measurements, budget: float, best: list[Any], exits: np.ndarray, macs: np.ndarray
) -> dict[str, Any]:
    full, ours = found[best[-1]], found[budget]
    speed_up = full[:, 0] / ours[:, 0]
    saved = macs[-1] / macs[exits].mean()
    taken = np.bincount(exits, minlength=len(macs)) / len(exits)
    cut = np.stack([found[way][:, 0] for way in best])  # [E, rounds]
    return {
        "macs_share": round(1 / saved, 4),
        "images_per_second": spread(1 / ours[:, 0])["median"],
        "full_images_per_second": spread(1 / full[:, 0])["median"],
        "latency_ms": spread(1e3 * ours[:, 1])["median"],
        "full_latency_ms": spread(1e3 * full[:, 1])["median"],
        "full_way": best[-1][1],
        "speed_up": spread(speed_up),
        "efficiency": spread(speed_up / saved),
        "vs_cut_networks": spread((taken @ cut) / ours[:, 0]),
    }


def streaming(contenders: Contenders, size: Mapping[str, Any]) -> dict[str, Any]:
    """A stream at full load compared with batches, at half of the multiply-adds."""
    classifier = contenders.adaptive(0.5)
    images = np.resize(contenders.images, (size["streamed"], *contenders.images.shape[1:]))
    with AdaptiveStream(classifier, max_waiting=4 * classifier.max_batch_size) as stream:

        def streamed(_: int) -> float:
            start = time.perf_counter()
            for future in [stream.submit(images[i : i + 7]) for i in range(0, len(images), 7)]:
                future.result()
            return time.perf_counter() - start

        def batched(_: int) -> float:
            start = time.perf_counter()
            classifier.predict(images)
            return time.perf_counter() - start

        found = take_turns({"streamed": streamed, "batched": batched}, size["rounds"])
        statistics = stream.statistics()
    return {
        "part": "streaming",
        "budget": 0.5,
        "submitted_at_a_time": 7,
        "images_per_second": spread(len(images) / found["streamed"]),
        "batched_images_per_second": spread(len(images) / found["batched"]),
        "streaming_vs_batched": spread(found["batched"] / found["streamed"]),
        "p50_ms": round(statistics.p50_ms, 1),
        "p99_ms": round(statistics.p99_ms, 1),
        "mean_batch_size": round(statistics.mean_batch_size, 1),
    }


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Measured speed-up over the speed-up in multiply-adds, one line per batch size."""
    figure = new_figure(7.2, 4.9, title)
    axes = figure.subplots()
    style_axes(axes, x="speed-up in multiply-adds", y="measured speed-up over the full network")
    sizes = sorted({row["batch_size"] for row in rows})
    shades = ["#9bb7d4", "#5b7fa6", "#0b7a75", "#0a4f4c", "#1f2328"]
    most = max(1 / row["macs_share"] for row in rows)
    axes.plot([1, most], [1, most], color="#667080", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("ideal", (most, most), ha="right", va="bottom", color="#667080")
    for shade, size in zip(shades, sizes, strict=False):
        own = sorted((r for r in rows if r["batch_size"] == size), key=lambda r: -r["macs_share"])
        saved = [1 / row["macs_share"] for row in own]
        speed = [row["speed_up"]["median"] for row in own]
        axes.plot(saved, speed, "o-", color=shade, label=f"batches of {size}")
    axes.legend(frameon=False, loc="upper left")
    return figure


def main() -> None:
    """Measures, prints the tables, writes the result and draws it."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument("--run", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--data-name", default="", help="name of the dataset in the result")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    batch_sizes = (1, 32, 256) if jax.default_backend() == "cpu" else (1, 32, 256, 1024, 4096)
    contenders = Contenders(arguments.run, arguments.dtype, batch_sizes[-1])
    rows = [row for batch in batch_sizes for row in throughput(contenders, size, batch)]
    stream = streaming(contenders, size)
    profile = contenders.full.profile.table().splitlines()
    summary = {
        "min_efficiency_batch256": min(
            r["efficiency"]["median"]
            for r in rows
            if r["batch_size"] == 256 and 0.3 <= r["budget"] <= 0.7
        ),
        "min_speed_vs_full": min(row["speed_up"]["median"] for row in rows),
        "streaming_vs_batched": stream["streaming_vs_batched"]["median"],
    }
    data = arguments.data_name or contenders.meta["dataset"]
    result = {"seeds": [0], "notes": NOTES, "targets": TARGETS, "summary": summary, "data": data}
    result |= {"network": contenders.meta["model"], "dtype": arguments.dtype, "profile": profile}
    result_file.write_result(
        arguments.out, (jax, jaxlib, flax, np), result | {"rows": [*rows, stream]}
    )
    figure = Path(arguments.out).with_suffix(".png")
    where = f"{jax.devices()[0].device_kind}, {data}"
    draw(rows, f"Early exits in time: {where}").savefig(figure)
    print(f"\n{figure}")


if __name__ == "__main__":
    main()
