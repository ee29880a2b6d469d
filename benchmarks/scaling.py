"""Communication volume and scaling of data parallelism: two measurements and one model.

- Bytes: parsed from training steps compiled for 8 virtual CPU devices.
- Weak scaling: two processes on one core each, compared with one process; same batch per process.
- Many chips: computed from those bytes, published link bandwidths and assumed step times
  (--step_ms). This part was not run on such machines.

    python benchmarks/scaling.py --out=benchmarks/results/scaling.json

The field `kind` of each row is `measured`, `derived` (from a network's sizes) or `computed`.
"""

import contextlib
import math
import multiprocessing
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before JAX starts: 8 virtual CPU devices
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np
from flax import nnx

from benchmarks import measurement, result_file
from benchmarks.collectives import collective_bytes
from benchmarks.interconnect import MACHINES, computed_row
from configs import cifar100, imagenet, quickstart
from imta_jax.config import PHASES, RunConfig
from imta_jax.data import DatasetInfo
from imta_jax.distributed import data_mesh, join_processes, place_batch
from imta_jax.training.objectives import ALL_PARAMETERS
from imta_jax.training.optimizer import sgd
from imta_jax.training.setup import (
    Phase,
    assemble_phase,
    new_phase_one,
    phase_one_objective,
    phase_parts,
)
from imta_jax.training.state import TrainState
from imta_jax.training.step import jit_batch_step
from imta_jax.types import Batch

SEED, BATCH, CHIPS = 0, 64, (8, 64, 256)
FULL = {"compiled": ("cifar_5_exits", "cifar_7_exits"), "rounds": 15, "block": 6}
QUICK = FULL | {"compiled": ("cifar_7_exits",), "rounds": 5, "block": 3}
TARGETS = {"all_reduce_bytes_vs_parameters": "at most 1.05"}
NOTES = {
    "bytes": "all_reduces: number after XLA's combiner on CPU; accelerators combine differently."
    " in_a_row: longest chain of dependent all-reduces, on any device",
    "weak_scaling": "two virtual cores with other load: noisy, and a pair waits for the slower"
    " process; `apart`: two processes without communication, the cost of sharing a machine",
    "computed": "half of the bandwidths in MACHINES of benchmarks/interconnect.py. No overlap:"
    " every message adds to the step; gradients overlap: only the chain of batch statistics adds;"
    " full overlap: the longest of the three. Step times are assumed, not measured",
}
# Skips kernel optimization, which takes minutes and does not change the communication.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "fusion",
}
# Family -> config and dataset.
FAMILIES = {
    "cifar": (cifar100, DatasetInfo("cifar100", 100, (32, 32, 3))),
    "imagenet": (imagenet, DatasetInfo("imagenet2012", 1000, (224, 224, 3))),
    "quickstart": (quickstart, DatasetInfo("fashion_mnist_small", 10, (32, 32, 1))),
}


def case_of(preset: str) -> tuple[RunConfig, Any]:
    """The config of a network preset, and the dataset's classes and image shape."""
    module, info = FAMILIES[preset.partition("_")[0]]
    config = module.get_config()
    config.model.preset = preset
    return RunConfig.from_mapping(config), info


def new_phase(config: RunConfig, info: Any, name: str) -> Phase:
    """A phase on all devices."""
    # A low learning rate keeps the loss finite over many steps on noise.
    optimizer = sgd(lambda step: 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    channels = info.image_shape[-1]
    pixels = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    classifier = new_phase_one(config, info)
    return assemble_phase(
        name, config, *phase_parts(name, config, classifier), optimizer, **pixels, mesh=data_mesh()
    )


def new_step(config: RunConfig, info: Any, name: str) -> tuple[Any, TrainState, Batch]:
    """(Compiled step of a phase on all devices, state, batch with 64 images per process)."""
    phase = new_phase(config, info, name)
    step, state = jit_batch_step(phase.step, phase.mesh), phase.new_state()
    index = np.arange(BATCH, dtype=np.int32)
    images = np.random.default_rng(SEED).integers(0, 256, (BATCH, *info.image_shape), np.uint8)
    batch = Batch(images, index % info.num_classes, np.ones(BATCH, bool), index)
    return step, state, place_batch(batch, phase.mesh)


def messages(text: str) -> dict[str, int]:
    """Number of all-reduces in a program, and of the longest chain of dependent ones."""
    count, depth = 0, {}  # depth: instruction -> all-reduces in its longest chain of inputs
    entry = text[text.index("\nENTRY") :]
    for line in re.finditer(r"(%\S+) = (?:\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)", entry):
        name, operation, operands, rest = line.groups()
        before = [depth.get(operand, 0) for operand in re.findall(r"%[\w.-]+", operands)]
        if operation in ("all-reduce", "all-reduce-start"):
            count += 1
            # Operands that XLA combined are independent: each output has its own depth.
            depth |= {f"{name},{i}": d + 1 for i, d in enumerate(before)}
            before = [d + 1 for d in before]
        elif operation == "get-tuple-element":
            index = re.search(r"index=(\d+)", rest)[1]
            before = [depth.get(f"{operands},{index}", before[0])]
        depth[name] = max(before, default=0)
    return {"all_reduces": count, "in_a_row": max(depth.values())}


def sizes(classifier: nnx.Module, trainable: Any) -> dict[str, int]:
    """Numbers of trained parameters and of batch-normalized channels in training mode."""
    trained = jax.tree.leaves(nnx.state(classifier, trainable))
    norms = [m for _, m in nnx.iter_graph(classifier) if hasattr(m, "use_running_average")]
    channels = [math.prod(m.mean.shape) for m in norms if not m.use_running_average]
    return {
        "trained_parameters": sum(math.prod(x.shape) for x in trained),
        "gradient_bytes": sum(math.prod(x.shape) * x.dtype.itemsize for x in trained),
        "normalisations": len(channels),
        "normalised_channels": sum(channels),
    }


def compiled_row(name: str, phase: str, config: RunConfig, info: Any) -> dict[str, Any]:
    """Communication of the compiled step of a phase on all devices."""
    parts = new_phase(config, info, phase)
    step, state, batch = new_step(config, info, phase)
    text = step.lower(state, batch).compile(compiler_options=FAST_COMPILATION).as_text()
    sent = collective_bytes(text)
    row = {"part": "bytes", "kind": "measured", "network": name, "phase": phase}
    row |= sizes(parts.classifier, parts.trainable) | {
        "all_reduce_bytes": sent.pop("all-reduce", 0)
    }
    row["to_gradients"] = round(row["all_reduce_bytes"] / row["gradient_bytes"], 4)
    return row | messages(text) | {"other_collectives": ", ".join(sent) or "none"}


def derived_row(preset: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Communication in phase I of a network that takes too long to compile, scaled from another.

    Bytes beyond the gradients scale with the normalized channels, messages with the BatchNorms.

    Args:
      preset: preset of the network.
      measured: row of the compiled network.
    """
    config, info = case_of(preset)
    classifier = nnx.eval_shape(lambda: new_phase_one(config, info))
    phase_one_objective(config).set_mode(classifier)
    row = {"part": "bytes", "kind": "derived", "network": preset, "phase": "phase_one"}
    row |= sizes(classifier, ALL_PARAMETERS)
    beyond = (measured["all_reduce_bytes"] - measured["gradient_bytes"]) / measured[
        "normalised_channels"
    ]
    row["all_reduce_bytes"] = row["gradient_bytes"] + round(beyond * row["normalised_channels"])
    row["to_gradients"] = round(row["all_reduce_bytes"] / row["gradient_bytes"], 4)
    for name in ("all_reduces", "in_a_row"):
        row[name] = round(measured[name] * row["normalisations"] / measured["normalisations"])
    return row | {"other_collectives": measured["other_collectives"]}


_running: list[Any] = []  # step, state and batch of this process of weak scaling


def begin(core: int, index: int, address: str | None, cache: str) -> None:
    """Sets this process up with one device on one core; with an address, as one of two."""
    # Before JAX counts devices and cores.
    os.sched_setaffinity(0, {core})
    os.environ.update(XLA_FLAGS="--xla_force_host_platform_device_count=1", NPROC="1")
    jax.config.update("jax_compilation_cache_dir", cache)
    if address:
        join_processes(address, 2, index)
    _running[:] = new_step(*case_of("quickstart"), "phase_one")
    work(2)


def work(steps: int) -> float:
    """Seconds per step over `steps` steps."""
    step, state, batch = _running
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    _running[1] = state
    return (time.perf_counter() - start) / steps


def weak_scaling(rounds: int, block: int) -> measurement.Measurements:
    """Seconds per step [rounds]: one process, two separate ones, two that train together."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RuntimeError("weak scaling needs two cores; this process may use one")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    fresh = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as cache:
        pools = [stack.enter_context(ProcessPoolExecutor(1, fresh)) for _ in range(4)]

        def each(
            indices: Sequence[int], function: Callable[..., Any], *arguments: Any
        ) -> list[Any]:
            return [f.result() for f in [pools[i].submit(function, *arguments) for i in indices]]

        for i, core in enumerate(cores):  # the second reads the first one's compilation cache
            each([i], begin, core, 0, None, cache)
        pair = [pools[2 + i].submit(begin, core, i, address, cache) for i, core in enumerate(cores)]
        futures.wait(pair)
        contenders = {
            "one": lambda r: max(each([r % 2], work, block)),
            "apart": lambda r: max(each([0, 1], work, block)),
            "together": lambda r: max(each([2, 3], work, block)),
        }
        results = measurement.take_turns(contenders, rounds)
        each([2, 3], jax.distributed.shutdown)
        return results


def run(size: Mapping[str, Any], given_ms: Mapping[str, float]) -> dict[str, Any]:
    """Rows and summary of all three parts."""
    # Each in its own process, which frees the memory.
    sent = [
        measurement.in_own_process(compiled_row, preset, phase, *case_of(preset))
        for preset in size["compiled"]
        for phase in PHASES
    ]
    headline = sent[-2]  # phase I of cifar_7_exits
    sent.append(derived_row("imagenet_step_4", headline))
    seconds = weak_scaling(size["rounds"], size["block"])
    header = {"part": "weak_scaling", "kind": "measured", "network": "quickstart"}
    times = {n: {"ms_per_step": measurement.spread(1e3 * s)} for n, s in seconds.items()}
    rows = [*sent, *(header | {"processes": name} | row for name, row in times.items())]
    for network in (headline, sent[-1]):
        rows += [computed_row(n, m, network, given_ms) for m in MACHINES for n in CHIPS]
    ratios = {
        "weak_scaling_efficiency": seconds["one"] / seconds["together"],
        "efficiency_of_two_apart": seconds["one"] / seconds["apart"],
    }
    summary = {"all_reduce_bytes_vs_parameters": headline["to_gradients"]}
    summary |= measurement.medians(ratios)
    return {"seeds": [SEED], "notes": NOTES, "targets": TARGETS, "rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    parser = result_file.argument_parser(__doc__)
    help_text = "NETWORK=MS, time of a phase-I step on one chip; replaces the assumed one"
    parser.add_argument("--step_ms", action="append", default=[], help=help_text)
    arguments = parser.parse_args()
    pairs = (pair.split("=") for pair in arguments.step_ms)
    result = run(QUICK if arguments.quick else FULL, {n: float(ms) for n, ms in pairs})
    result_file.write_result(arguments.out, (jax, flax, np), result)


if __name__ == "__main__":
    main()
