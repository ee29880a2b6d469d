"""What `train_step.py` times: our compiled steps and PyTorch's, each in a process of its own.

Only one process computes at a time; the others wait for a word through a pipe, so that neither
framework's threads disturb the other's. Both get the same weights, the same bytes, already on the
device, and both normalise them within the step.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

SEED, BATCHES = 0, 4
# Low: many steps on noise must not end in numbers that are not finite.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# The second counts what this process's threads compute, on a processor only; it hardly knows what
# else the machine does, but counts threads that spin while they wait: to be used with one thread.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
KINDS = ("forward", "phase_one", "phase_two")
DEVICES = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # and what JAX calls its backend there
OURS = ("batches", "resident")
# How PyTorch is run: memory layout, and the mode of torch.compile or None.
TORCH_MODES: Mapping[str, tuple[bool, str | None]] = {
    "eager": (False, None),
    "eager, channels last": (True, None),
    "compiled": (False, "default"),
    "compiled, channels last": (True, "default"),
    "CUDA graphs": (False, "reduce-overhead"),
    "CUDA graphs, channels last": (True, "reduce-overhead"),
    "max-autotune": (False, "max-autotune"),
    "max-autotune, channels last": (True, "max-autotune"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
      network: a preset of `imta_jax.models`.
      batch_size: images per step.
      precision: one of `PRECISIONS`.
      device: one of `DEVICES`.
      threads: of a processor.
    """

    network: str
    batch_size: int
    precision: str = "float32"
    device: str = "cpu"
    threads: int = 2

    @property
    def facts(self) -> SimpleNamespace:
        """What the builders ask of a dataset."""
        if self.network.startswith("imagenet"):
            return SimpleNamespace(num_classes=1000, image_shape=(224, 224, 3))
        return SimpleNamespace(num_classes=10, image_shape=(32, 32, 3))

    @property
    def name(self) -> str:
        """Short, for a table."""
        return f"{self.network}, {self.batch_size}, {self.precision}"


def draw_batches(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Some batches of noise: uint8 [S, N, H, W, C] and int32 labels [S, N]."""
    shape, generator = (BATCHES, case.batch_size), np.random.default_rng(SEED)
    images = generator.integers(0, 256, (*shape, *case.facts.image_shape), np.uint8)
    return images, generator.integers(0, case.facts.num_classes, shape, np.int32)


def pixel_statistics(case: Case) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation per channel that both normalise with."""
    channels = case.facts.image_shape[-1]
    return {"mean": (0.5,) * channels, "std": (0.25,) * channels}


def ours(case: Case, mode: str) -> tuple[dict[str, Callable[[int], Any]], Arrays]:
    """Our steps by kind, (number of steps) -> the last losses per exit, and the first weights."""
    import jax

    if case.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if case.precision != "bfloat16":
        jax.config.update("jax_default_matmul_precision", case.precision)
    from benchmarks.our_steps import OurSteps

    steps = OurSteps(case, resident=mode == "resident")
    return {kind: getattr(steps, kind) for kind in KINDS}, steps.weights


def pytorch(case: Case, mode: str, weights: Arrays) -> dict[str, Callable[[int], Any]]:
    """PyTorch's steps by kind, (number of steps) -> the last losses per exit."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the plan is made by a package that imports JAX
    from benchmarks.torch_steps import TorchSteps

    channels_last, compilation = TORCH_MODES[mode]
    steps = TorchSteps(case, weights, channels_last=channels_last, compilation=compilation)
    return {"phase_one": steps.phase_one, "forward": steps.forward}


_running: dict[str, Callable[[int], Any]] = {}  # in a contender's process: its steps by kind


def begin(case: Case, framework: str, mode: str, weights: Arrays | None) -> Arrays | None:
    """Makes this process a contender; ours hands out the weights that the others start from."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])
    os.environ |= {"NPROC": str(case.threads), "OMP_NUM_THREADS": str(case.threads)}
    if framework == "ours":
        found, weights = ours(case, mode)
    else:
        found, weights = pytorch(case, mode, weights), None
    _running.update(found)
    return weights


def work(kind: str, steps: int, clock: str) -> tuple[float, list[float]]:
    """Seconds per step of so many, and the last one's losses per exit (or logits, a few)."""
    now = CLOCKS[clock]
    start = now()
    last = _running[kind](steps)
    return (now() - start) / steps, last


@contextlib.contextmanager
def own_process() -> Iterator[Callable[..., Any]]:
    """A fresh interpreter that waits for calls, each (function of a module, arguments)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def modes_for(device: str, wanted: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(framework, mode) of the contenders that a device has, those of ours first.

    Args:
      device: one of `DEVICES`; many steps in one dispatch are worth it on accelerators only, and
        CUDA graphs are there with "cuda" only.
      wanted: PyTorch's modes; empty for all.
    """
    cuda = device == "cuda"
    found = [("ours", mode) for mode in (OURS[:1] if device == "cpu" else OURS)]
    for mode, (_, compilation) in TORCH_MODES.items():
        if mode in wanted or (not wanted and (cuda or compilation in (None, "default"))):
            found.append(("pytorch", mode))
    return found


def surroundings(folder: Path, device: str) -> None:
    """For all contenders: what compilers make stays in a folder; they share a device's memory."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    if device == "cuda":  # the first would take three quarters of it
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def hindrance(device: str, with_torch: bool) -> str:
    """Why a device cannot be measured here, "" if it can; to be asked in a process of its own."""
    import jax

    if device != "cpu" and (found := jax.default_backend()) != DEVICES[device]:
        return (
            f'--device={device}, but JAX computes on "{found}" here; is there one, and JAX made for'
            f' it: pip install -e ".[{device}]"?'
        )
    if not with_torch:
        return ""
    if device == "tpu":
        return "PyTorch is not measured on a TPU: add --without-torch"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f'PyTorch: {error}; pip install -e ".[benchmark]", or add --without-torch'
    if device == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU; install one that does, or --without-torch"
    return ""
