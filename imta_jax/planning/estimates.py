"""Estimates of a step's time from the profile of its program.

No estimate was compared with a device. With generated code (`full`), the time of the kernels is the
sum of the TPU compiler's own cycles, which are static and do not include waiting for memory.
Without it, and on GPUs, it is

    kernels * kernel_seconds + touched / array_bandwidth + traffic / memory bandwidth

with the bytes that kernels touch in any memory and the traffic with the main memory. The constants
of v5e reproduce the cycles of four phase-I steps within 3%: quickstart, 5 and 7 exits, ImageNet
step 4. Three constants and four programs leave little to check; see `docs/guides/plan.md`.
"""

import dataclasses
import math

from imta_jax.planning.chips import Chip
from imta_jax.planning.profile import Profile, Work
from imta_jax.planning.programs import ProgramInfo
from imta_jax.planning.topologies import Topology
from imta_jax.runtime.lane_padding import lanes_padded

# Factors for the lower and the upper estimate of the kernels' time. They are set by hand: cycles
# exclude waiting, the fit adds its own error, and times of GPU kernels are assumed.
CYCLES_RANGE, FITTED_RANGE, GPU_RANGE = (0.85, 1.5), (0.7, 1.8), (0.5, 2.5)
# Seconds of one hop between neighbors on a torus (jax-ml.github.io/scaling-book: about 1 us), and
# the fraction of the links' bandwidth that a collective uses.
_HOP_SECONDS, _LINK_SHARE = (0.5e-6, 1.0e-6), (0.8, 0.5)
# NCCL's model (github.com/NVIDIA/nccl, src/graph/tuning.cc at b647562): base, per GPU, per node.
_NCCL_SECONDS = (6.8e-6, 0.6e-6, 5.0e-6)
_GPUS_PER_NODE = 8


@dataclasses.dataclass(frozen=True)
class Seconds:
    """A duration: an estimate and its range."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> "Seconds":
        """The duration of `factor` repetitions."""
        return Seconds(self.low * factor, self.expected * factor, self.high * factor)

    def plus(self, other: "Seconds") -> "Seconds":
        """The sum of two durations."""
        return Seconds(self.low + other.low, self.expected + other.expected, self.high + other.high)


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """Times of one step on one chip, in seconds.

    Attributes:
      matrix_floor: lower bound by the matrix products, at the peak of the matrix units.
      memory_floor: lower bound by the traffic with the main memory, at its bandwidth.
      kernels: time in kernels.
      messages: time of the collectives between chips, which is not overlapped.
      step: the step, without the host.
    """

    matrix_floor: float
    memory_floor: float
    kernels: Seconds
    messages: Seconds
    step: Seconds


def estimate_step(profile: Profile, info: ProgramInfo, topology: Topology) -> StepEstimate:
    """Estimates a step.

    Args:
      profile: profile of the program.
      info: description of the program.
      topology: the chips.
    """
    chip = topology.chip
    per_call = 1 / info.steps
    kernels = kernel_seconds(profile.step, chip).plus(
        kernel_seconds(profile.dispatch, chip).times(per_call)
    )
    traffic = profile.step.memory_bytes + profile.dispatch.memory_bytes * per_call
    memory = traffic / chip.memory_bandwidth
    messages = collective_seconds(profile, topology)
    step = Seconds(
        max(kernels.low, memory), max(kernels.expected, memory), max(kernels.high, memory)
    ).plus(messages)
    matrix = info.matrix_operations / chip.matrix_flops
    return StepEstimate(matrix, memory, kernels, messages, step)


def kernel_seconds(work: Work, chip: Chip) -> Seconds:
    """Time in kernels: the compiler's cycles if there are any, else a fit."""
    if cycles := sum(work.cycles.values()):
        expected, (low, high) = cycles / chip.clock_hz, CYCLES_RANGE
    else:
        expected = _fitted(chip, work.kernels, work.touched_bytes, work.memory_bytes)
        low, high = GPU_RANGE if chip.platform == "cuda" else FITTED_RANGE
    return Seconds(low * expected, expected, high * expected)


def _fitted(chip: Chip, kernels: float, touched: float, traffic: float) -> float:
    arrays = touched / chip.array_bandwidth + traffic / chip.memory_bandwidth
    return kernels * chip.kernel_seconds + arrays


def seconds_by_part(work: Work, chip: Chip) -> dict[str, float]:
    """`kernel_seconds` by part of the step, longest first."""
    if work.cycles:
        seconds = {part: cycles / chip.clock_hz for part, cycles in work.cycles.items()}
    else:
        seconds = {
            part: _fitted(chip, kernels, work.touched_by_part[part], work.memory_by_part[part])
            for part, kernels in work.kernels_by_part.items()
        }
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def collective_seconds(profile: Profile, topology: Topology) -> Seconds:
    """Time of a step's collectives: bytes over the links, and a latency for each in the chain."""
    chips = topology.chips
    if chips == 1:
        return Seconds(0, 0, 0)
    sent = 2 * (chips - 1) / chips * sum(profile.step.collective_bytes.values())
    low, high = (
        sent / (fraction * topology.chip.link_bandwidth) + profile.chain * latency
        for fraction, latency in zip(_LINK_SHARE, collective_latency(topology), strict=True)
    )
    return Seconds(low, (low + high) / 2, high)


def collective_latency(topology: Topology) -> tuple[float, float]:
    """Lower and upper latency of a small all-reduce, in seconds.

    On a torus: two rounds along each axis. Rings of 16 and more chips are closed, which halves the
    distance; the upper value does not count on it.
    """
    if topology.chip.torus_axes:
        hops = 2 * sum(side - 1 for side in topology.shape)
        return _HOP_SECONDS[0] * hops, _HOP_SECONDS[1] * hops
    base, per_gpu, per_node = _NCCL_SECONDS
    nodes = max(topology.chips // _GPUS_PER_NODE, 1)
    latency = base + 2 * ((topology.chips // nodes - 1) * per_gpu + math.log2(nodes) * per_node)
    return 0.7 * latency, 1.5 * latency


def padded_images(images: int, chip: Chip) -> int:
    """Images of a batch on one chip, with the padding that adds to its time and memory."""
    return lanes_padded(images) if chip.platform == "tpu" else images


@dataclasses.dataclass(frozen=True)
class BatchChoice:
    """A batch per chip, scaled from a program with another batch.

    Attributes:
      images: images per chip.
      images_per_second: throughput of all chips.
      memory_bytes: memory on one chip.
    """

    images: int
    images_per_second: float
    memory_bytes: float


def batch_choices(
    profile: Profile, info: ProgramInfo, topology: Topology, memory_bytes: float
) -> list[BatchChoice]:
    """Estimates other batches per chip without compiling them.

    Time and memory of arrays with one entry per image are proportional to the padded batch; the
    rest does not change.

    Args:
      profile: profile of the compiled program.
      info: description of the program.
      topology: the chips.
      memory_bytes: memory that the compiled program takes.
    """
    chip, compiled = topology.chip, estimate_step(profile, info, topology)
    fraction = profile.step.batch_bytes / max(profile.step.touched_bytes, 1)
    overhead = min(profile.step.kernels * chip.kernel_seconds / compiled.kernels.expected, 0.9)
    varying = compiled.step.expected - compiled.messages.expected
    fixed_memory = info.image_bytes + 3 * info.gradient_bytes
    choices = []
    for images in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        ratio = padded_images(images, chip) / padded_images(info.images_per_chip, chip)
        scale = overhead + (1 - overhead) * (fraction * ratio + 1 - fraction)
        seconds = varying * scale + compiled.messages.expected
        memory = fixed_memory + max(memory_bytes - fixed_memory, 0) * (
            fraction * ratio + 1 - fraction
        )
        choices.append(BatchChoice(images, images * topology.chips / seconds, memory))
    return choices


def best_batch(choices: list[BatchChoice], chip: Chip, share: float = 0.9) -> BatchChoice | None:
    """The smallest batch per chip that fits and reaches `share` of the highest throughput."""
    fitting = [choice for choice in choices if choice.memory_bytes <= chip.memory_bytes]
    best = max((choice.images_per_second for choice in fitting), default=0)
    return next((c for c in fitting if c.images_per_second >= share * best), None)
