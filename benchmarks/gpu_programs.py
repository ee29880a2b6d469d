"""Programs of all networks, compiled for GPUs that are not attached: memory, kernels, collectives.

    python benchmarks/gpu_programs.py --out=benchmarks/results/gpu_programs.json

See `tpu_programs.py`. For one GPU, code is generated too, and the table has the CUDA graphs of a
step (XLA's command buffers) and the operations that the host launches one by one. Times of kernels
are assumed: 2 us each, and the bandwidth of the memory.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks import compiled_programs
from benchmarks.compiled_programs import Row, estimated, selected
from imta_jax.planning.topologies import Topology

TOPOLOGIES = ("h100:1", "h100:8", "h200:8")
_FIELDS = (
    *("batch_size", "images_per_chip", "fits", "memory_bytes", "kernels", "transposes"),
    *("transpose_bytes", "launches", "cpu_seconds"),
)
TARGETS = {
    "phase_one_compiles": ("1 (all fit)", compiled_programs.phase_one_compiles),
    "all_reduce_bytes_vs_parameters": (
        "at most 1.05",
        compiled_programs.all_reduce_bytes_vs_parameters,
    ),
}


def row(program: Mapping[str, Any]) -> Row:
    """The numbers of a program that the table shows."""
    return selected(program, _FIELDS) | estimated(program)


def generates_code(topology: Topology) -> bool:
    """Whether programs for a topology are compiled completely, which takes 2.5 times as long."""
    return topology.chips == 1


if __name__ == "__main__":
    compiled_programs.main(__doc__ or "", TOPOLOGIES, row, TARGETS, full=generates_code)
