"""Time of a training step of phase I and II by kind of operation, from a profiler trace.

The trace has the time of each instruction of the compiled step. The compiled program's metadata
has the source of each instruction and whether it is part of the backward pass.

    python benchmarks/operations.py --out=benchmarks/results/operations.json
    python benchmarks/operations.py --out=result.json --network=imagenet_step_4_published
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np

from benchmarks import jax_steps, measurement, result_file
from benchmarks.cases import SEED, Case
from benchmarks.stage_floors import KINDS, least_seconds
from imta_jax.runtime.huge_pages import restart_with_huge_pages

FULL = {"network": "cifar_5_exits", "batch_size": 64, "steps": 6}
QUICK = FULL | {"network": "quickstart", "batch_size": 16, "steps": 2}
ALL = "all"
# Convolutions and matrix products: instructions, or calls of a GPU library.
PRODUCT = re.compile(r" (?:dot|convolution)\(|__cublas|__cudnn")
NOTES = {
    "ms": "per step, summed over threads or streams, of instructions of that kind",
    "whole_ms": "wall-clock time of a step without the profiler; least of the runs",
    "fusions": "count as the kind of their result, or as products if they contain one; a"
    " concatenation or slice that was fused into its consumer counts there",
}


class Origin(NamedTuple):
    """The source of an instruction.

    Attributes:
      name: JAX's op_name: transformations, functions, scopes and primitive.
      product: whether it is, or contains, a convolution or a matrix product.
    """

    name: str
    product: bool


class Program:
    """The sources of the instructions of a compiled program.

    Args:
      text: the program as XLA prints it; a computation precedes its callers.

    Attributes:
      origins: instruction name -> its source.
    """

    def __init__(self, text: str):
        self.origins: dict[str, Origin] = {}
        computations: dict[str, Origin] = {}  # last op_name, and whether it has a product
        computation = ""
        for line in text.splitlines():
            if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
                computation = start[1]
            elif match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                called = re.search(r"calls=%?([\w.\-]+)", line)
                inside = computations.get(called[1] if called else "", Origin("", False))
                op_name = re.search(r'op_name="([^"]*)"', line)
                product = bool(PRODUCT.search(line)) or inside.product
                origin = Origin(op_name[1] if op_name else inside.name, product)
                self.origins[match[1]] = origin
                before = computations.get(computation, origin)
                name = origin.name or before.name
                computations[computation] = Origin(name, product or before.product)

    def kind(self, instruction: str) -> tuple[str, str]:
        """(Kind of operation; "forward", "backward" or "update") of an instruction."""
        return kind_of(self.origins.get(instruction, Origin("", False)))


def kind_of(origin: Origin) -> tuple[str, str]:
    """(Kind of operation; "forward", "backward" or "update") of a source."""
    name = origin.name
    pass_ = "backward" if "transpose(" in name else "forward" if "jvp(" in name else "update"
    if not name:
        return "copies", ""
    if "jit(convolve" in name:
        scope = re.search(r"(\d+x\d+)_stride_(\d)", name)
        form = f"{scope[1]} convolutions, stride {scope[2]}" if scope else "other convolutions"
        return form + (": products" if origin.product else ": data movement and sums"), pass_
    if "jit(batch_normalize" in name:
        return "normalization, with ReLU", pass_
    if name.endswith("/concatenate"):
        return "concatenations, with fused operations", pass_
    return ("optimizer and checks" if pass_ == "update" else "other"), pass_


def self_times(events: Iterable[tuple[str, float, float]]) -> Counter[str]:
    """Self time in nanoseconds by event name, without the time of nested events.

    Args:
      events: name, start and duration in nanoseconds of the events of one thread or stream.
    """
    self_time: Counter[str] = Counter()
    open_events: list[tuple[str, float]] = []  # (name, end)
    for name, start, duration in sorted(events, key=lambda e: (e[1], -e[2])):
        while open_events and open_events[-1][1] <= start:
            open_events.pop()
        if open_events:
            self_time[open_events[-1][0]] -= duration
        self_time[name] += duration
        open_events.append((name, start + duration))
    return self_time


def traced(folder: Path) -> Counter[str]:
    """Nanoseconds by instruction in a trace, summed over threads or streams.

    Raises:
      RuntimeError: the trace has no instructions.
    """
    (file,) = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    # With an accelerator only its own planes: the host merely dispatches.
    planes = [p for p in planes if p.name.startswith("/device:")] or planes
    total: Counter[str] = Counter()
    for line in (line for plane in planes for line in plane.lines):
        events = ((dict(e.stats).get("hlo_op"), e.start_ns, e.duration_ns) for e in line.events)
        for name, nanoseconds in self_times(e for e in events if e[0]).items():
            total[name] += nanoseconds
    if not total:
        raise RuntimeError(f"the trace of {jax.devices()[0]} has no instructions")
    return total


def phase_rows(steps: jax_steps.JaxSteps, phase: str, count: int) -> list[dict[str, Any]]:
    """One row per kind of operation, the longest first, and a last one for the entire step.

    Args:
      steps: the steps of one case.
      phase: one of `KINDS`.
      count: number of traced steps.
    """
    steps.compiled_memory(phase, count)  # compiles
    program, take = Program(steps.phases[phase].step.as_text()), getattr(steps, phase)
    step_seconds = least_seconds(lambda: take(count), 3) / count
    times = kind_times(program, lambda: take(count))
    total = sum(times.values())
    rows = [
        {"operations": kind, "way": pass_, "ms": nanoseconds / 1e6 / count}
        | {"share": nanoseconds / total}
        for (kind, pass_), nanoseconds in times.most_common()
    ]
    last = {"operations": ALL, "way": "", "ms": total / 1e6 / count, "whole_ms": 1e3 * step_seconds}
    return [measurement.rounded({"part": phase, **row}) for row in (*rows, last)]


def kind_times(program: Program, call: Callable[[], Any]) -> Counter[tuple[str, str]]:
    """Traces one call of the program; returns nanoseconds by kind of operation."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            call()
        times: Counter[tuple[str, str]] = Counter()
        for instruction, nanoseconds in traced(Path(folder)).items():
            times[program.kind(instruction)] += nanoseconds
    return times


def run(size: Mapping[str, Any]) -> dict[str, Any]:
    """Rows, and a summary with the kinds that take at least a tenth of the time."""
    case = Case(size["network"], size["batch_size"])
    rows = []
    for phase in KINDS:
        print(f"compiling: {phase}", flush=True)
        rows += phase_rows(jax_steps.JaxSteps(case, on_device=False), phase, size["steps"])
    summary = {
        f"{row['part']}, {row['operations']} {row['way']}": row["share"]
        for row in rows
        if row.get("share", 0) >= 0.1
    }
    header = {"seeds": [SEED], **size, "data": "noise", "notes": NOTES, "targets": {}}
    return header | {"rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument("--network", help="a network preset; default: cifar_5_exits")
    parser.add_argument("--batch", type=int, help="images per step")
    arguments = parser.parse_args()
    size = dict(QUICK if arguments.quick else FULL)
    size["network"] = arguments.network or size["network"]
    size["batch_size"] = arguments.batch or size["batch_size"]
    result_file.write_result(arguments.out, (jax, flax, np), run(size))


if __name__ == "__main__":
    restart_with_huge_pages()  # as launch.py does
    main()
