"""Programs of all networks, compiled for TPUs that are not attached: memory, collectives, times.

    python benchmarks/tpu_programs.py --out=benchmarks/results/tpu_programs.json

Compiles the phases and the evaluation of each network as `--mode=plan` does, with 128 images per
chip, up to buffer assignment. Nothing is executed. Pairs of network and topology that are already
in the file are kept, so that the script resumes. `gpu_programs.py` does the same for GPUs.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks import compiled_programs
from benchmarks.compiled_programs import Row, estimated, fitting, selected

TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v6e:2x2", "v5p:2x2x1", "v4:2x2x1")
_FIELDS = ("batch_size", "images_per_chip", "fits", "memory_bytes", "padding", "kernels")


def row(program: Mapping[str, Any]) -> Row:
    """The numbers of a program that the table shows."""
    return selected(program, _FIELDS) | estimated(program)


def padding_waste(rows: list[Row]) -> float | None:
    """Bytes of results with padding relative to those without, the largest of the rows."""
    return max((row["padding"] for row in fitting(rows)), default=None)


TARGETS = {
    "phase_one_compiles": ("1 (all fit)", compiled_programs.phase_one_compiles),
    "all_reduce_bytes_vs_parameters": (
        "at most 1.05",
        compiled_programs.all_reduce_bytes_vs_parameters,
    ),
    "padding_waste": ("at most 1.1", padding_waste),
}


if __name__ == "__main__":
    compiled_programs.main(__doc__ or "", TOPOLOGIES, row, TARGETS)
