"""Published numbers of accelerator chips, and constants of the time estimates."""

import dataclasses
import math
import re
from pathlib import Path

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: the first part of a topology's name, for example "v5e".
      platform: "tpu" or "cuda".
      matrix_flops: peak of the matrix units in bfloat16, operations per second.
      memory_bytes: device memory that programs may use.
      memory_bandwidth: bandwidth of the device memory, bytes per second.
      link_bandwidth: bandwidth of all links of one chip in each direction, bytes per second.
      torus_axes: axes of the interconnect; 0 for a switch.
      clock_hz: clock of the core, which converts the compiler's cycles to seconds.
      kernel_seconds: fitted time of a kernel without its arrays; see `estimates.kernel_seconds`.
      array_bandwidth: fitted rate of reading and writing arrays in any memory, with their padding,
        bytes per second.
    """

    name: str
    platform: str
    matrix_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    torus_axes: int
    clock_hz: float
    kernel_seconds: float
    array_bandwidth: float


# Peaks, memory and links: docs.cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e). A program may
# use a little less than the memory: the v5e compiler reports a limit of 15.75 of 16 GiB. Clocks:
# jax-ml.github.io/scaling-book. The last two columns are fitted for v5e (`estimates`); those of the
# others are scaled by clock and by the number of cores, two on v4 and v5p.
TPU_CHIPS = {
    "v4": Chip("v4", "tpu", 275e12, 31.75 * GIB, 1228e9, 300e9, 3, 1.05e9, 2.8e-6, 6.7e12),
    "v5e": Chip("v5e", "tpu", 197e12, 15.75 * GIB, 819e9, 200e9, 2, 1.5e9, 1.97e-6, 4.8e12),
    "v5p": Chip("v5p", "tpu", 459e12, 94.75 * GIB, 2765e9, 600e9, 3, 1.75e9, 1.69e-6, 11.2e12),
    "v6e": Chip("v6e", "tpu", 918e12, 31.25 * GIB, 1640e9, 400e9, 2, 1.5e9, 1.97e-6, 4.8e12),
}
GPU_TARGETS = {path.stem: path for path in sorted((Path(__file__).parent / "targets").iterdir())}
# Dense bfloat16 peak of one tensor-core multiprocessor per cycle (H100: 990 TFLOP/s, 132 of them,
# 1.83 GHz). NVLink 4 has 450 GB/s in each direction.
_FLOPS_PER_CORE_AND_CYCLE = 4096
_NVLINK_BANDWIDTH = 450e9
# XLA reserves a quarter of the memory by default for libraries and fragmentation.
_GPU_MEMORY_SHARE = 0.75
# Assumed: a kernel of a CUDA graph starts every 2 microseconds.
_GPU_KERNEL_SECONDS = 2e-6


def gpu_chip(name: str, target_config: str) -> Chip:
    """A chip from the text of XLA's `GpuTargetConfigProto`.

    Args:
      name: name of the chip.
      target_config: text format of the message.

    Raises:
      KeyError: a field is missing.
    """
    fields = dict(re.findall(r"(\w+): ([\d.]+)", target_config))
    clock = float(fields["clock_rate_ghz"]) * 1e9
    bandwidth = float(fields["memory_bandwidth"])
    return Chip(
        name,
        "cuda",
        float(fields["core_count"]) * clock * _FLOPS_PER_CORE_AND_CYCLE * 0.925,
        float(fields["device_memory_size"]) * _GPU_MEMORY_SHARE,
        bandwidth,
        _NVLINK_BANDWIDTH,
        0,
        clock,
        _GPU_KERNEL_SECONDS,
        math.inf,  # All arrays are in the main memory.
    )
