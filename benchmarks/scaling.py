"""Measures what data parallelism sends and how two processes scale; computes what chips should do.

Bytes: read from the compiled steps of 8 devices, made of one processor. Weak scaling: two processes
on a core each against one, the same batch in each. Many chips: computed from those bytes, published
link speeds and assumed times of a step (--step_ms); nobody has run it there.

    python benchmarks/scaling.py --out=benchmarks/results/scaling.json

Every row says what it is: `measured`, `derived` (from a network's sizes) or `computed`.
"""

import contextlib
import dataclasses
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
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # before JAX starts: a processor, which can pass for 8 devices
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np
from flax import nnx

from benchmarks import environment
from benchmarks.collectives import collective_bytes
from configs import cifar100, imagenet, quickstart
from imta_jax.distributed import data_mesh, join_processes, place_batch
from imta_jax.training import phases
from imta_jax.training.objectives import ALL_PARAMETERS, HEAD_PARAMETERS
from imta_jax.training.optimizer import sgd
from imta_jax.training.state import TrainState, create_state
from imta_jax.training.step import on_batches, train_step
from imta_jax.types import Batch

SEED, BATCH, CHIPS = 0, 64, (8, 64, 256)
FULL = {"compiled": ("cifar_5_exits", "cifar_7_exits"), "rounds": 15, "block": 6}
QUICK = FULL | {"compiled": ("cifar_7_exits",), "rounds": 5, "block": 3}
TARGETS = {"all_reduce_bytes_vs_parameters": "at most 1.05"}
NOTES = {
    "bytes": "all_reduces: after the processor's compiler has joined what it could, those of"
    " accelerators join otherwise; in_a_row: the most that wait for one another, whoever compiles",
    "weak_scaling": "two virtual cores that other work uses too: noisy, and a pair waits for the"
    " slower one; `apart` are two processes that send nothing, what sharing a machine costs",
    "computed": "half of the bandwidths in MACHINES of benchmarks/scaling.py. No overlap: all wait"
    " for every message; gradients overlap: only for batch statistics, one row of them; full"
    " overlap: whichever takes longest. Steps take what is assumed, not measured",
}
# What is sent does not depend on how a processor's kernels are made, which takes minutes.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "fusion",
}
# Config, and what the builders ask of a dataset.
FAMILIES = {
    "cifar": (cifar100, SimpleNamespace(num_classes=100, image_shape=(32, 32, 3))),
    "imagenet": (imagenet, SimpleNamespace(num_classes=1000, image_shape=(224, 224, 3))),
    "quickstart": (quickstart, SimpleNamespace(num_classes=10, image_shape=(28, 28, 1))),
}


def settings(preset: str) -> tuple[Mapping[str, Any], Any]:
    """A named network's config and the images it is for."""
    module, facts = FAMILIES[preset.partition("_")[0]]
    config = module.get_config()
    config.model.preset = preset
    return config.to_dict(), facts


def prepare(config: Mapping[str, Any], facts: Any, phase: str) -> tuple[nnx.Module, Any, Any]:
    """A phase's network in its training mode, its objective and what it trains."""
    classifier = phases.new_phase_one(config, facts)
    if phase == "phase_one":
        objective, trainable = phases.phase_one_objective(config), ALL_PARAMETERS
    else:
        classifier = phases.new_phase_two(config, classifier)
        objective, trainable = phases.phase_two_objective(config), HEAD_PARAMETERS
    objective.set_mode(classifier)
    return classifier, objective, trainable


def new_step(config: Mapping[str, Any], facts: Any, phase: str) -> tuple[Any, TrainState, Batch]:
    """A phase's step on all devices, a state, and a batch of which each process has 64 rows."""
    classifier, objective, trainable = prepare(config, facts, phase)
    # A low rate: many steps on noise must not end in numbers that are not finite.
    tx = sgd(lambda step: 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    mesh, channels = data_mesh(), facts.image_shape[-1]
    graphdef, state = create_state(classifier, trainable, tx, mesh)
    pixels = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    step = on_batches(train_step(graphdef, objective, trainable, tx, **pixels, mesh=mesh), mesh)
    index = np.arange(BATCH, dtype=np.int32)
    images = np.random.default_rng(SEED).integers(0, 256, (BATCH, *facts.image_shape), np.uint8)
    batch = Batch(images, index % facts.num_classes, np.ones(BATCH, bool), index)
    return step, state, place_batch(batch, mesh)


def messages(text: str) -> dict[str, int]:
    """`all_reduces` in a compiled program's text, and how many wait `in_a_row` for one another."""
    count, depth = 0, {}  # depth: by name, all-reduces that go before
    entry = text[text.index("\nENTRY") :]
    for line in re.finditer(r"(%\S+) = (?:\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)", entry):
        name, operation, operands, rest = line.groups()
        before = [depth.get(operand, 0) for operand in re.findall(r"%[\w.-]+", operands)]
        if operation in ("all-reduce", "all-reduce-start"):
            count += 1
            # Those that were joined wait for each other only because they were.
            depth |= {f"{name},{i}": d + 1 for i, d in enumerate(before)}
            before = [d + 1 for d in before]
        elif operation == "get-tuple-element":
            index = re.search(r"index=(\d+)", rest)[1]
            before = [depth.get(f"{operands},{index}", before[0])]
        depth[name] = max(before, default=0)
    return {"all_reduces": count, "in_a_row": max(depth.values())}


def sizes(classifier: nnx.Module, trainable: Any) -> dict[str, int]:
    """What a phase trains, and over how much it computes batch statistics."""
    trained = jax.tree.leaves(nnx.state(classifier, trainable))
    norms = [m for _, m in nnx.iter_graph(classifier) if hasattr(m, "use_running_average")]
    channels = [math.prod(m.mean.shape) for m in norms if not m.use_running_average]
    return {
        "trained_parameters": sum(math.prod(x.shape) for x in trained),
        "gradient_bytes": sum(math.prod(x.shape) * x.dtype.itemsize for x in trained),
        "normalisations": len(channels),
        "normalised_channels": sum(channels),
    }


def compiled_row(name: str, phase: str, config: Mapping[str, Any], facts: Any) -> dict[str, Any]:
    """What a phase's step sends among all devices, read from its compiled text."""
    classifier, _, trainable = prepare(config, facts, phase)
    step, state, batch = new_step(config, facts, phase)
    text = step.lower(state, batch).compile(compiler_options=FAST_COMPILATION).as_text()
    sent = collective_bytes(text)
    row = {"part": "bytes", "kind": "measured", "network": name, "phase": phase}
    row |= sizes(classifier, trainable) | {"all_reduce_bytes": sent.pop("all-reduce", 0)}
    row["to_gradients"] = round(row["all_reduce_bytes"] / row["gradient_bytes"], 4)
    return row | messages(text) | {"other_collectives": ", ".join(sent) or "none"}


def derived_row(preset: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """Phase I of a network that takes too long to compile here, from its sizes and from `like`.

    Bytes beyond the gradients go with the channels, messages with the batch normalisations.
    """
    config, facts = settings(preset)
    classifier = nnx.eval_shape(lambda: phases.new_phase_one(config, facts))
    phases.phase_one_objective(config).set_mode(classifier)
    row = {"part": "bytes", "kind": "derived", "network": preset, "phase": "phase_one"}
    row |= sizes(classifier, ALL_PARAMETERS)
    beyond = (like["all_reduce_bytes"] - like["gradient_bytes"]) / like["normalised_channels"]
    row["all_reduce_bytes"] = row["gradient_bytes"] + round(beyond * row["normalised_channels"])
    row["to_gradients"] = round(row["all_reduce_bytes"] / row["gradient_bytes"], 4)
    for name in ("all_reduces", "in_a_row"):
        row[name] = round(like[name] * row["normalisations"] / like["normalisations"])
    return row | {"other_collectives": like["other_collectives"]}


_running: list[Any] = []  # in a process of weak scaling: its step, state and batch


def begin(core: int, index: int, address: str | None, cache: str) -> None:
    """Makes this process one of one device on one core, alone or, at an address, one of two."""
    # Before JAX looks how many devices to make, and of how many cores.
    os.sched_setaffinity(0, {core})
    os.environ.update(XLA_FLAGS="--xla_force_host_platform_device_count=1", NPROC="1")
    jax.config.update("jax_compilation_cache_dir", cache)
    if address:
        join_processes(address, 2, index)
    _running[:] = new_step(*settings("quickstart"), "phase_one")
    work(2)


def work(steps: int) -> float:
    """Seconds per step of so many."""
    step, state, batch = _running
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    _running[1] = state
    return (time.perf_counter() - start) / steps


def weak_scaling(rounds: int, block: int) -> environment.Measurements:
    """Seconds per step [rounds] of one process, of two apart and of two that train together."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RuntimeError("weak scaling is measured on two cores; this process may use one")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    fresh = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as cache:
        pools = [stack.enter_context(ProcessPoolExecutor(1, fresh)) for _ in range(4)]

        def each(those: Sequence[int], function: Callable[..., Any], *arguments: Any) -> list[Any]:
            return [f.result() for f in [pools[i].submit(function, *arguments) for i in those]]

        for i, core in enumerate(cores):  # the second finds in the cache what the first compiled
            each([i], begin, core, 0, None, cache)
        pair = [pools[2 + i].submit(begin, core, i, address, cache) for i, core in enumerate(cores)]
        futures.wait(pair)
        contenders = {
            "one": lambda r: max(each([r % 2], work, block)),
            "apart": lambda r: max(each([0, 1], work, block)),
            "together": lambda r: max(each([2, 3], work, block)),
        }
        found = environment.take_turns(contenders, rounds)
        each([2, 3], jax.distributed.shutdown)
        return found


def torus_us(chips: int, axes: int, hop_us: float = 1.0) -> float:
    """Time of a small all-reduce that goes round each axis of a torus (1: a ring) twice.

    Of a number of chips that is a power of two. Each hop takes "around 1us", says
    jax-ml.github.io/scaling-book/sharding.
    """
    power = round(math.log2(chips))
    sides = [2 ** ((power + axis) // axes) for axis in range(axes)]
    return 2 * sum(side - 1 for side in sides) * hop_us


def nccl_us(chips: int) -> float:
    """The same as NCCL itself estimates it, 8 GPUs a node."""
    # github.com/NVIDIA/nccl, src/graph/tuning.cc at b647562 (2.20): baseLat, hwLat, Tree/LL.
    nodes = max(chips // 8, 1)
    return 6.8 + 2 * ((chips // nodes - 1) * 0.6 + math.log2(nodes) * 5.0)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What connects chips.

    Attributes:
      gigabytes_per_second: published, out of one chip; as much comes in at once.
      message_us: chips -> time of an all-reduce of next to nothing.
      step_ms: ASSUMED, of phase I by network, 64 images a chip for CIFAR and 32 for ImageNet. Not
        measured: guessed on the fast side, where waiting for others weighs most.
    """

    gigabytes_per_second: float
    message_us: Callable[[int], float]
    step_ms: Mapping[str, float]


MACHINES = {
    # cloud.google.com/tpu/docs/v5e: 1,600 Gbit/s a chip (now put as 400 GB/s, both ways).
    "TPU v5e": Machine(200, lambda n: torus_us(n, axes=2), {"cifar": 20, "imagenet": 100}),
    # cloud.google.com/tpu/docs/v4: all-reduce bandwidth of 1.1 PB/s over 4,096 chips.
    "TPU v4": Machine(268, lambda n: torus_us(n, axes=3), {"cifar": 15, "imagenet": 80}),
    # jax-ml.github.io/scaling-book/gpus: NVLink 4 gives 450 GB/s each way (900 in all) within a
    # node, NDR InfiniBand 8 x 400 Gbit/s = 400 GB/s out of one; the smaller is taken.
    "H100/H200": Machine(400, nccl_us, {"cifar": 15, "imagenet": 60}),
}
# ASSUMED share of the published bandwidth; tori of fewer than 16 a side miss their wrap-around.
REACHED = 0.5


def all_reduce_ms(chips: int, size: float, machine: Machine, count: int = 1) -> float:
    """Time of all-reduces of so many bytes in all, each chip sending and getting at once."""
    sent = 2 * (chips - 1) / chips * size
    bandwidth = REACHED * 1e9 * machine.gigabytes_per_second
    return 1e3 * sent / bandwidth + (1e-3 * count * machine.message_us(chips) if chips > 1 else 0)


def computed_row(
    chips: int, name: str, sent: Mapping[str, Any], given_ms: Mapping[str, float]
) -> dict[str, Any]:
    """What so many chips of a machine should reach in phase I, each with the batch of one."""
    machine, network = MACHINES[name], sent["network"]
    step = given_ms.get(network, machine.step_ms[network.partition("_")[0]])
    gradients = all_reduce_ms(chips, sent["gradient_bytes"], machine)
    size = sent["all_reduce_bytes"] - sent["gradient_bytes"]
    # Without the one that carries the gradients.
    statistics, row = (
        all_reduce_ms(chips, size, machine, sent[count] - 1)
        for count in ("all_reduces", "in_a_row")
    )
    efficiency = {
        "efficiency_no_overlap": step / (step + gradients + statistics),
        "efficiency_gradients_overlap": step / (max(step, gradients) + row),
        "efficiency_full_overlap": step / max(step, gradients, row),
    }
    about = {"part": "computed", "kind": "computed", "network": network, "machine": name}
    about |= {"chips": chips, "step_ms_is": "given" if network in given_ms else "assumed"}
    times = {"step_ms": step, "gradients_ms": gradients}
    times |= {"statistics_ms": statistics, "statistics_row_ms": row}
    return about | {key: round(value, 3) for key, value in (times | efficiency).items()}


def run(size: Mapping[str, Any], given_ms: Mapping[str, float]) -> dict[str, Any]:
    """Rows and summary of all three parts."""
    # In processes of their own, so that none keeps another's memory.
    sent = [
        environment.in_own_process(compiled_row, preset, phase, *settings(preset))
        for preset in size["compiled"]
        for phase in phases.PHASES
    ]
    headline = sent[-2]  # phase I of cifar_7_exits
    sent.append(derived_row("imagenet_step_4", headline))
    seconds = weak_scaling(size["rounds"], size["block"])
    about = {"part": "weak_scaling", "kind": "measured", "network": "quickstart"}
    times = {n: {"ms_per_step": environment.spread(1e3 * s)} for n, s in seconds.items()}
    rows = [*sent, *(about | {"processes": name} | found for name, found in times.items())]
    for network in (headline, sent[-1]):
        rows += [computed_row(n, m, network, given_ms) for m in MACHINES for n in CHIPS]
    ratios = {
        "weak_scaling_efficiency": seconds["one"] / seconds["together"],
        "efficiency_of_two_apart": seconds["one"] / seconds["apart"],
    }
    summary = {"all_reduce_bytes_vs_parameters": headline["to_gradients"]}
    summary |= environment.medians(ratios)
    return {"seeds": [SEED], "notes": NOTES, "targets": TARGETS, "rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    parser = environment.argument_parser(__doc__)
    about = "NETWORK=MS, of phase I on one chip, in place of what is assumed (may be repeated)"
    parser.add_argument("--step_ms", action="append", default=[], help=about)
    arguments = parser.parse_args()
    pairs = (given.split("=") for given in arguments.step_ms)
    result = run(QUICK if arguments.quick else FULL, {n: float(ms) for n, ms in pairs})
    environment.write_result(arguments.out, (jax, flax, np), result)


if __name__ == "__main__":
    main()
