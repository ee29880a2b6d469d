"""Runs JAX's and PyTorch's steps for `train_step.py`, each in a separate process.

Only one process computes at a time; the others wait on a pipe, so that neither framework's threads
disturb the other's. All start from the same weights and read the same bytes from device memory.
The normalization is part of every step.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases import DEVICES, KINDS, Arrays, Case

# "cpu" counts the computing time of all threads of the process. It hardly depends on other load,
# but counts threads that spin while they wait: use it with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS = ("batches", "resident")
# How PyTorch runs: channels-last memory layout or not, and the mode of torch.compile or None.
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


def jax_steps(case: Case, mode: str) -> tuple[dict[str, Callable[[int], Any]], Arrays]:
    """Our steps by kind, (number of steps) -> last losses per exit, and the initial weights."""
    import jax

    if case.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if case.precision != "bfloat16":
        jax.config.update("jax_default_matmul_precision", case.precision)
    from benchmarks.jax_steps import JaxSteps

    steps = JaxSteps(case, on_device=mode == "resident")
    return {kind: getattr(steps, kind) for kind in KINDS}, steps.weights


def torch_steps(case: Case, mode: str, weights: Arrays) -> dict[str, Callable[[int], Any]]:
    """PyTorch's steps by kind, (number of steps) -> last losses per exit."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the network plan comes from a package with JAX
    from benchmarks.torch_steps import TorchSteps

    channels_last, compilation = TORCH_MODES[mode]
    steps = TorchSteps(case, weights, channels_last=channels_last, compilation=compilation)
    return {"phase_one": steps.phase_one, "forward": steps.forward}


_steps: dict[str, Callable[[int], Any]] = {}  # Steps of this process, by kind.


def begin(case: Case, framework: str, mode: str, weights: Arrays | None) -> Arrays | None:
    """Prepares the steps of this process; returns the initial weights if they are JAX's."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])
    os.environ |= {"NPROC": str(case.threads), "OMP_NUM_THREADS": str(case.threads)}
    if framework == "ours":
        steps, weights = jax_steps(case, mode)
    else:
        steps, weights = torch_steps(case, mode, weights), None
    _steps.update(steps)
    return weights


def work(kind: str, steps: int, clock: str) -> tuple[float, list[float]]:
    """Seconds per step over `steps` steps, and the last losses per exit (or some logits)."""
    now = CLOCKS[clock]
    start = now()
    last = _steps[kind](steps)
    return (now() - start) / steps, last


@contextlib.contextmanager
def own_process() -> Iterator[Callable[..., Any]]:
    """A fresh interpreter; yields a function that calls a module-level function there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def modes_for(device: str, torch_modes: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(framework, mode) of all contenders on a device, ours first.

    Args:
      device: one of `DEVICES`. Several steps per dispatch are timed on accelerators only, and CUDA
        graphs with "cuda" only.
      torch_modes: PyTorch's modes; empty selects them by device.
    """
    cuda = device == "cuda"
    modes = [("ours", mode) for mode in (OURS[:1] if device == "cpu" else OURS)]
    for mode, (_, compilation) in TORCH_MODES.items():
        if mode in torch_modes or (not torch_modes and (cuda or compilation in (None, "default"))):
            modes.append(("pytorch", mode))
    return modes


def set_environment(folder: Path, device: str) -> None:
    """Sets what all contenders inherit: TorchInductor's cache folder, no memory preallocation."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    if device == "cuda":  # by default the first JAX process takes three quarters of the memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def unavailable(device: str, with_torch: bool) -> str:
    """Why a device cannot be measured here, or "". Call it in a separate process."""
    import jax

    if device != "cpu" and (backend := jax.default_backend()) != DEVICES[device]:
        return (
            f'--device={device}, but JAX computes on "{backend}" here; check that the device is'
            f' visible and install JAX for it: pip install -e ".[{device}]"'
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
