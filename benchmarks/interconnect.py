"""A model of all-reduces between chips, from published bandwidths and latencies.

`scaling.py` computes the weak-scaling efficiency of many chips with it. It was not compared with
such machines.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any


def torus_us(chips: int, axes: int, hop_us: float = 1.0) -> float:
    """Latency of a small all-reduce: two rounds along each axis of a torus (one axis: a ring).

    The number of chips must be a power of two. A hop takes "around 1us" according to
    jax-ml.github.io/scaling-book/sharding.
    """
    power = round(math.log2(chips))
    sides = [2 ** ((power + axis) // axes) for axis in range(axes)]
    return 2 * sum(side - 1 for side in sides) * hop_us


def nccl_us(chips: int) -> float:
    """Latency of a small all-reduce in NCCL's own model, with 8 GPUs per node."""
    # github.com/NVIDIA/nccl, src/graph/tuning.cc at b647562 (2.20): baseLat, hwLat, Tree/LL.
    nodes = max(chips // 8, 1)
    return 6.8 + 2 * ((chips // nodes - 1) * 0.6 + math.log2(nodes) * 5.0)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Interconnect of a kind of machine.

    Attributes:
      gigabytes_per_second: published bandwidth out of one chip; the same in, at the same time.
      message_us: number of chips -> latency of an all-reduce in microseconds.
      step_ms: assumed time of a phase-I step by network family, with 64 images per chip for CIFAR
        and 32 for ImageNet. Not measured; short, so that communication weighs more.
    """

    gigabytes_per_second: float
    message_us: Callable[[int], float]
    step_ms: Mapping[str, float]


MACHINES = {
    # cloud.google.com/tpu/docs/v5e: 1,600 Gbit/s per chip (now given as 400 GB/s, both ways).
    "TPU v5e": Machine(200, lambda n: torus_us(n, axes=2), {"cifar": 20, "imagenet": 100}),
    # cloud.google.com/tpu/docs/v4: all-reduce bandwidth of 1.1 PB/s over 4,096 chips.
    "TPU v4": Machine(268, lambda n: torus_us(n, axes=3), {"cifar": 15, "imagenet": 80}),
    # jax-ml.github.io/scaling-book/gpus: NVLink 4 has 450 GB/s each way within a node, NDR
    # InfiniBand 8 x 400 Gbit/s = 400 GB/s out of a node. The smaller one counts.
    "H100/H200": Machine(400, nccl_us, {"cifar": 15, "imagenet": 60}),
}
# Assumed fraction of the published bandwidth: tori with sides below 16 have no wrap-around links.
BANDWIDTH_FRACTION = 0.5


def all_reduce_ms(chips: int, size: float, machine: Machine, count: int = 1) -> float:
    """Milliseconds of `count` all-reduces of `size` bytes in total; links are full duplex."""
    sent = 2 * (chips - 1) / chips * size
    bandwidth = BANDWIDTH_FRACTION * 1e9 * machine.gigabytes_per_second
    return 1e3 * sent / bandwidth + (1e-3 * count * machine.message_us(chips) if chips > 1 else 0)


def computed_row(
    chips: int, name: str, sent: Mapping[str, Any], given_ms: Mapping[str, float]
) -> dict[str, Any]:
    """Modeled weak-scaling efficiency of phase I on a number of chips."""
    machine, network = MACHINES[name], sent["network"]
    step = given_ms.get(network, machine.step_ms[network.partition("_")[0]])
    gradients = all_reduce_ms(chips, sent["gradient_bytes"], machine)
    size = sent["all_reduce_bytes"] - sent["gradient_bytes"]
    # One message carries the gradients.
    statistics, chain = (
        all_reduce_ms(chips, size, machine, sent[count] - 1)
        for count in ("all_reduces", "in_a_row")
    )
    efficiency = {
        "efficiency_no_overlap": step / (step + gradients + statistics),
        "efficiency_gradients_overlap": step / (max(step, gradients) + chain),
        "efficiency_full_overlap": step / max(step, gradients, chain),
    }
    header = {"part": "computed", "kind": "computed", "network": network, "machine": name}
    header |= {"chips": chips, "step_ms_is": "given" if network in given_ms else "assumed"}
    times = {"step_ms": step, "gradients_ms": gradients}
    times |= {"statistics_ms": statistics, "statistics_row_ms": chain}
    return header | {key: round(value, 3) for key, value in (times | efficiency).items()}
