"""The jobs of `gpu_session.py`: each yields a row after each measurement."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

NETWORK, PRETRAINED = "cifar_5_exits", "cifar100_5_exits"
_WARM_UP = 2  # calls
_STEPS = 20  # per call
_BUDGETS = (0.3, 0.5, 0.7, 1.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of a job; each kind uses some of them.

    Attributes:
      device: "cuda" or "cpu".
      folder: where the initial weights are kept, for PyTorch.
      stem: stem of the names of files in the folder.
      batch_size: images per step or call.
      precision: one of `cases.PRECISIONS`.
      framework: "ours" or "pytorch".
      mode: one of `step_contenders.OURS` or `TORCH_MODES`.
      calls: timed calls.
      quick: whether small networks are measured.
    """

    device: str
    folder: Path
    stem: str
    batch_size: int
    precision: str = "float32"
    framework: str = "ours"
    mode: str = "batches"
    calls: int = 9
    quick: bool = False


def steps(settings: Settings) -> Iterator[dict[str, Any]]:
    """Seconds per step of one contender, for each kind of step, with the first losses."""
    from benchmarks import step_contenders
    from benchmarks.cases import KINDS, Case
    from imta_jax.runtime.environment import usable_cores

    step_contenders.set_environment(settings.folder / "inductor", settings.device)
    network = "quickstart" if settings.quick else NETWORK
    case = Case(network, settings.batch_size, settings.precision, settings.device, usable_cores())
    header = {"network": network, "precision": case.precision, "batch_size": case.batch_size}
    header |= {"framework": settings.framework, "mode": settings.mode}
    start = time.perf_counter()
    weights = _weights(settings)
    arrays = step_contenders.begin(case, settings.framework, settings.mode, weights)
    if arrays is not None:
        np.savez(_weights_file(settings), **arrays)
    for kind in KINDS if settings.framework == "ours" else KINDS[:2]:
        _, first = step_contenders.work(kind, 1, "wall")
        compiled = time.perf_counter() - start
        count = 1 if settings.device == "cpu" else _STEPS
        calls = [
            step_contenders.work(kind, count, "wall")[0] for _ in range(_WARM_UP + settings.calls)
        ]
        ms = 1e3 * float(np.median(calls[_WARM_UP:]))
        row = {"part": "steps", "kind": kind, **header, "ms": round(ms, 4)}
        row |= {"least_ms": round(1e3 * min(calls[_WARM_UP:]), 4), "first": first}
        row |= {"images_per_second": round(1e3 * case.batch_size / ms)}
        yield row | {"start_s": round(compiled, 1), "program_bytes": _program_bytes(settings)}
        start = time.perf_counter()


def _weights_file(settings: Settings) -> Path:
    return settings.folder / f"{settings.stem}_weights.npz"


def _weights(settings: Settings) -> dict[str, np.ndarray] | None:
    """Our initial weights, which the first job has saved."""
    if settings.framework == "ours":
        return None
    with np.load(_weights_file(settings)) as file:
        return dict(file)


def _program_bytes(settings: Settings) -> int | None:
    """Peak of the device memory of this process in JAX; None for PyTorch and on CPUs."""
    if settings.framework != "ours":
        return None
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def engine(settings: Settings) -> Iterator[dict[str, Any]]:
    """Throughput and latency at several budgets for one batch size."""
    from benchmarks.early_exit import QUICK, Contenders, throughput
    from benchmarks.trained_networks import source_of_pretrained

    name = "quickstart" if settings.quick else PRETRAINED
    contenders = Contenders(
        source_of_pretrained(name, "fashion_mnist_small")
        if settings.quick
        else source_of_noise(name),
        "float32",
        settings.batch_size,
    )
    size = QUICK | {"budgets": _BUDGETS[1:] if settings.quick else _BUDGETS}
    for row in throughput(contenders, size, settings.batch_size):
        yield row | {"network": name}


def source_of_noise(name: str) -> Any:
    """A pretrained network whose test images are noise of two contrasts.

    The time of the engine depends on the fractions of images that leave at each exit, not on what
    the images show; thresholds are chosen for the budgets on half of them.
    """
    from benchmarks.trained_networks import Source
    from imta_jax.data import Split
    from imta_jax.evaluation import Predictions, collect_predictions, outcomes
    from imta_jax.pretrained import load_pretrained

    classifier, meta, _ = load_pretrained(name)
    generator = np.random.default_rng(0)
    contrast = generator.uniform(0, 100, (2000, 1, 1, 1))
    images = generator.normal(128, contrast, (2000, *classifier.image_shape)).clip(0, 255)
    labels = generator.integers(0, classifier.num_classes, 2000).astype(np.int32)
    split = Split(images.astype(np.uint8), labels, np.arange(2000))
    pixels = {key: meta[key] for key in ("mean", "std")}
    predictions = collect_predictions(classifier, split, batch_size=500, pipeline="numpy", **pixels)
    halves = [
        outcomes(Predictions(predictions.logits[:, half], labels[half]))
        for half in (slice(1000), slice(1000, None))
    ]
    return Source(classifier, meta, split.images[1000:], *halves)


def plan(settings: Settings) -> Iterator[dict[str, Any]]:
    """What the planner predicts for the step that `steps` measures."""
    import jax

    from benchmarks import cases
    from imta_jax.planning.plan import make_plan
    from imta_jax.planning.sweep import with_batch_size
    from imta_jax.planning.topologies import parse_topology

    kind = jax.devices()[0].device_kind.lower()
    chip = "h200:1" if "h200" in kind else "h100:1"
    config = with_batch_size(cases.case_config(NETWORK), settings.batch_size)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, pipeline="numpy"))
    (program,) = make_plan(config, parse_topology(chip), programs=["phase_one"]).programs
    step = program.estimate.step if program.estimate else None
    yield {
        "part": "plan",
        "topology": chip,
        "device": kind,
        "batch_size": settings.batch_size,
        "precision": settings.precision,
        "step_ms": 1e3 * step.expected if step else None,
        "range_ms": [1e3 * step.low, 1e3 * step.high] if step else None,
        "memory_bytes": program.compiled.memory_bytes,
        "kernels": program.profile.step.kernels if program.profile else None,
        "compile_s": round(program.compiled.trace_seconds + program.compiled.compile_seconds, 1),
    }


JOBS: dict[str, Callable[[Settings], Iterator[dict[str, Any]]]] = {
    "steps": steps,
    "engine": engine,
    "plan": plan,
}
