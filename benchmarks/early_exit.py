"""Measures the time that early exits save, relative to the fastest full network.

Takes a finished run, classifies its test images at budgets from 20% to 100% of the full network's
multiply-adds for several batch sizes, and compares throughput and latency with the full network
compiled as one program. *Efficiency* is the measured speed-up over the speed-up in multiply-adds.
The full network runs in the form that is fastest at that batch size: images first, images last, or
the program of evaluation, in slices of several sizes, one or two at a time.

    python launch.py --config=configs/cifar10.py --workdir=runs/cifar10 \
        --config.data.source=cifar10.npz --config.model.preset=cifar_5_exits \
        --config.phase_one.total_epochs=7 --config.phase_two.total_epochs=2
    python benchmarks/early_exit.py --run=runs/cifar10 --out=benchmarks/results/early_exit.json

All contenders take turns in one process, with huge pages. The figure is saved next to the JSON.
`--pretrained=NAME` takes a network that ships with the package instead of a run, and images and
labels from `--source`.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
from benchmarks.trained_networks import Source, source_of_pretrained, source_of_run
from imta_jax.distributed import data_mesh
from imta_jax.evaluation.budget import curve_of_outcomes
from imta_jax.inference import AdaptiveClassifier, AdaptiveStream
from imta_jax.models.logits import inference_logits
from imta_jax.report.style import new_figure, style_axes
from imta_jax.runtime.huge_pages import restart_with_huge_pages

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FULL = {"budgets": BUDGETS, "rounds": 7, "calls_of_one": 64, "streamed": 1536}
QUICK = FULL | {"budgets": (0.3, 0.5, 1.0), "rounds": 3, "calls_of_one": 32, "streamed": 512}
SLICES = (16, 32, 64, 128)
FINALISTS = 4  # forms of the full network that are timed against the engine
TARGETS = {
    "min_efficiency_batch256": "at least 0.9 (budgets 30-70%)",
    "min_efficiency_batch32": "at least 0.8 (budgets 30-70%)",
    "min_speed_vs_full": "at least 0.97",
    "speed_up_batch1_budget50": "at least 1.5",
    "streaming_vs_batched": "at least 0.95",
}
NOTES = {
    "adaptive": "predict(images), from images to predictions in host memory, with its checks",
    "full": "one program with the heads that the last exit needs, in the fastest form and slicing",
    "thresholds": "geometric sweep on validation images, the nearest point below the budget",
}


class Contenders:
    """A trained network and the programs that are timed on it.

    Args:
      source: network, images and predictions.
      dtype: compute dtype of the backbone.
      max_batch_size: largest batch size.
    """

    def __init__(self, source: Source, dtype: str, max_batch_size: int):
        self.classifier, self.meta, self.images = source.classifier, source.meta, source.images
        self.classifier.eval()
        self.classifier.compute_dtype = jnp.dtype(dtype)
        self.graphdef, self.state = nnx.split(self.classifier)
        self.settings = {"mean": self.meta["mean"], "std": self.meta["std"], "dtype": dtype}
        self.settings["max_batch_size"] = max_batch_size
        last_only = np.full(self.classifier.num_exits, 2.0)
        self.full = AdaptiveClassifier(self.classifier, last_only, **self.settings)
        self.network, self.macs = self.full.network, self.full.macs
        self._programs: dict[Any, Callable[[np.ndarray], Any]] = {}
        self.curve = curve_of_outcomes(
            source.validation, source.test, self.macs, quotas=np.geomspace(0.02, 8, 400)
        )
        self.threads = ThreadPoolExecutor(2)

    def adaptive(self, budget: float) -> AdaptiveClassifier:
        """Compiled, at the sweep's nearest point below the budget; 1 is the full network."""
        if budget >= 1:
            self.full.warm_up()
            return self.full
        cost = self.curve.validation_cost / self.macs[-1]
        point = int(np.argmax(np.where(cost <= budget, cost, -1)))
        classifier = self.full.with_thresholds(
            self.curve.thresholds[point],
            exit_fractions=self.curve.validation_exit_fractions[point],
        )
        classifier.warm_up()
        return classifier

    def full_programs(self, batch_size: int) -> dict[str, Callable[[np.ndarray], Any]]:
        """Programs of the full network for a batch: by form, slice size, slices at a time."""
        programs: dict[str, Callable[[np.ndarray], Any]] = {}
        # An accelerator computes a batch fastest in one piece.
        slices = SLICES if jax.default_backend() == "cpu" else ()
        for form in ("images first", "images last", "evaluation"):
            for size in sorted({min(size, batch_size) for size in (*slices, batch_size)}):
                program = self._full_program(form, size)
                for threads in (1, 2):
                    if program and (threads == 1 or batch_size // size > 1):
                        name = f"{form}, slices of {size}, {threads} at a time"
                        programs[name] = self._slicing(program, size, threads)
        return programs

    def fastest_programs(
        self, batch_size: int, images: np.ndarray
    ) -> dict[str, Callable[[np.ndarray], Any]]:
        """The fastest programs in a few rounds; they are timed again together with the engine."""
        programs = self.full_programs(batch_size)
        images = images[: max(batch_size, 64)]
        seconds = take_turns({k: timed(run, images, batch_size) for k, run in programs.items()}, 5)
        ranked = sorted(programs, key=lambda name: float(np.median(seconds[name][:, 0])))
        return {name: programs[name] for name in ranked[:FINALISTS]}

    def _full_program(self, form: str, size: int) -> Callable[[np.ndarray], Any] | None:
        """The network up to its last exit as one program: images -> labels and confidences."""
        network = self.network
        if (form, size) in self._programs:
            return self._programs[form, size]
        if form == "evaluation":
            arguments: Any = self.state
            predict = self._evaluation
        else:
            stages = network if form == "images first" else network.images_last
            if stages is None:
                return None
            arguments = stages.weights

            def predict(weights: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
                state, logits = (images,), images
                for stage, stage_weights in zip(stages.stages, weights, strict=True):
                    state, logits = stage(stage_weights, state)
                return logits.argmax(axis=-1), jax.nn.softmax(logits).max(axis=-1)

        shape = jax.ShapeDtypeStruct((size, *network.image_shape), np.uint8)
        program = jax.jit(predict).lower(arguments, shape).compile()
        self._programs[form, size] = lambda images: jax.device_get(program(arguments, images))
        return self._programs[form, size]

    def _evaluation(self, state: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The program of `evaluation`, for the last exit."""
        fields = {name: self.meta[name] for name in ("mean", "std")}
        logits = inference_logits(self.graphdef, [state], images, mesh=data_mesh(), **fields)[-1]
        return logits.argmax(axis=-1), jax.nn.softmax(logits).max(axis=-1)

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
    work |= contenders.fastest_programs(batch_size, images)
    seconds = take_turns(
        {k: timed(run, images, batch_size) for k, run in work.items()}, size["rounds"]
    )
    best = _fastest(seconds)
    rows = []
    for budget, classifier in adaptive.items():
        predictions = classifier.predict(images)
        rows.append(
            {"part": "throughput", "batch_size": batch_size, "budget": budget}
            | _row(seconds, budget, best, predictions.exit, contenders.macs)
        )
    return rows


def _fastest(seconds: Measurements) -> str:
    """The program of the full network with the lowest median time."""
    names = [key for key in seconds if isinstance(key, str)]
    return min(names, key=lambda name: float(np.median(seconds[name][:, 0])))


def _row(
    seconds: Measurements, budget: float, best: str, exits: np.ndarray, macs: np.ndarray
) -> dict[str, Any]:
    full, adaptive = seconds[best], seconds[budget]
    speed_up = full[:, 0] / adaptive[:, 0]
    saved = macs[-1] / macs[exits].mean()
    return {
        "macs_share": round(1 / saved, 4),
        "images_per_second": spread(1 / adaptive[:, 0])["median"],
        "full_images_per_second": spread(1 / full[:, 0])["median"],
        "latency_ms": spread(1e3 * adaptive[:, 1])["median"],
        "full_latency_ms": spread(1e3 * full[:, 1])["median"],
        "full_way": best,
        "speed_up": spread(speed_up),
        "efficiency": spread(speed_up / saved),
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

        seconds = take_turns({"streamed": streamed, "batched": batched}, size["rounds"])
        statistics = stream.statistics()
    return {
        "part": "streaming",
        "budget": 0.5,
        "submitted_at_a_time": 7,
        "images_per_second": spread(len(images) / seconds["streamed"]),
        "batched_images_per_second": spread(len(images) / seconds["batched"]),
        "streaming_vs_batched": spread(seconds["batched"] / seconds["streamed"]),
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
    largest = max(1 / row["macs_share"] for row in rows)
    axes.plot([1, largest], [1, largest], color="#667080", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("ideal", (largest, largest), ha="right", va="bottom", color="#667080")
    for shade, size in zip(shades, sizes, strict=False):
        of_size = sorted(
            (r for r in rows if r["batch_size"] == size), key=lambda r: -r["macs_share"]
        )
        saved = [1 / row["macs_share"] for row in of_size]
        speed = [row["speed_up"]["median"] for row in of_size]
        axes.plot(saved, speed, "o-", color=shade, label=f"batches of {size}")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _least_efficiency(rows: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """The lowest efficiency of a batch size at budgets of 30 to 70%."""
    return min(
        row["efficiency"]["median"]
        for row in rows
        if row["batch_size"] == batch_size and 0.3 <= row["budget"] <= 0.7
    )


def main() -> None:
    """Measures, prints the tables, writes the result and draws it."""
    parser = result_file.argument_parser(__doc__)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--run", type=Path, help="folder of a finished run")
    network.add_argument("--pretrained", help="a network that ships with the package")
    parser.add_argument(
        "--source", default="fashion_mnist_small", help="test images, for --pretrained"
    )
    parser.add_argument("--data-name", default="", help="name of the dataset in the result")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    batch_sizes = (1, 32, 256) if jax.default_backend() == "cpu" else (1, 32, 256, 1024, 4096)
    source = (
        source_of_run(arguments.run)
        if arguments.run
        else source_of_pretrained(arguments.pretrained, arguments.source)
    )
    contenders = Contenders(source, arguments.dtype, batch_sizes[-1])
    rows = [row for batch in batch_sizes for row in throughput(contenders, size, batch)]
    stream = streaming(contenders, size)
    profile = contenders.full.profile.table().splitlines()
    summary = {
        **{f"min_efficiency_batch{n}": _least_efficiency(rows, n) for n in (256, 32)},
        "speed_up_batch1_budget50": next(
            r["speed_up"]["median"] for r in rows if (r["batch_size"], r["budget"]) == (1, 0.5)
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
    setup = f"{jax.devices()[0].device_kind}, {data}"
    draw(rows, f"Early exits in time: {setup}").savefig(figure)
    print(f"\n{figure}")


if __name__ == "__main__":
    restart_with_huge_pages()  # as launch.py does
    main()
