"""What a step of phase I and II spends its time on, by kind of operation, from a profiler's trace.

The trace tells how long each instruction of the compiled step took; where in the code an
instruction comes from, and whether it computes a gradient, is in the compiled program.

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

from benchmarks import environment, our_steps
from benchmarks.stage_floors import KINDS, least_seconds
from benchmarks.step_contenders import SEED, Case
from imta_jax.runtime.huge_pages import start_with_huge_pages

FULL = {"network": "cifar_5_exits", "batch_size": 64, "steps": 6}
QUICK = FULL | {"network": "quickstart", "batch_size": 16, "steps": 2}
ALL = "all"
# What computes products: an instruction by itself, or the library that a GPU's is handed to.
PRODUCT = re.compile(r" (?:dot|convolution)\(|__cublas|__cudnn")
NOTES = {
    "ms": "per step, all threads or streams together, in which instructions of that kind ran",
    "whole_ms": "of a step on the clock, without the profiler; least of the runs",
    "fusions": "count as their result, or as products if one is in them; a concatenation or a"
    " gradient's slice that was fused into its reader counts there",
}


class Origin(NamedTuple):
    """Where an instruction comes from.

    Attributes:
      name: JAX's path of transformations, functions, scopes and primitive.
      product: whether it, or what is fused into it, is a convolution or a matrix product.
    """

    name: str
    product: bool


class Program:
    """Where the instructions of a compiled program come from.

    Args:
      text: the program as XLA prints it: what is called stands before its caller.

    Attributes:
      origins: by instruction.
    """

    def __init__(self, text: str):
        self.origins: dict[str, Origin] = {}
        whole: dict[str, Origin] = {}  # of each computation: its last name, and any product
        computation = ""
        for line in text.splitlines():
            if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
                computation = start[1]
            elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                called = re.search(r"calls=%?([\w.\-]+)", line)
                inside = whole.get(called[1] if called else "", Origin("", False))
                own = re.search(r'op_name="([^"]*)"', line)
                product = bool(PRODUCT.search(line)) or inside.product
                origin = Origin(own[1] if own else inside.name, product)
                self.origins[found[1]] = origin
                before = whole.get(computation, origin)
                whole[computation] = Origin(origin.name or before.name, product or before.product)

    def kind(self, instruction: str) -> tuple[str, str]:
        """(What an instruction is for, "forward", "backward" or "update")."""
        return kind_of(self.origins.get(instruction, Origin("", False)))


def kind_of(origin: Origin) -> tuple[str, str]:
    """See `Program.kind`."""
    name = origin.name
    way = "backward" if "transpose(" in name else "forward" if "jvp(" in name else "update"
    if not name:
        return "copies", ""
    if "jit(convolve)" in name:
        scope = re.search(r"(\d+x\d+)_stride_(\d)", name)
        form = f"{scope[1]} convolutions, stride {scope[2]}" if scope else "other convolutions"
        return form + (": products" if origin.product else ": moving and adding"), way
    if "jit(batch_normalize)" in name:
        return "normalisation, with ReLU", way
    if name.endswith("/concatenate"):
        return "concatenations, and what is fused into them", way
    return ("optimiser and checks" if way == "update" else "everything else"), way


def own_times(events: Iterable[tuple[str, float, float]]) -> Counter[str]:
    """Nanoseconds by name, without those of events within an event.

    Args:
      events: of one thread or stream: name, start and duration in nanoseconds.
    """
    own: Counter[str] = Counter()
    around: list[tuple[str, float]] = []  # events that are not over, and when they will be
    for name, start, duration in sorted(events, key=lambda e: (e[1], -e[2])):
        while around and around[-1][1] <= start:
            around.pop()
        if around:
            own[around[-1][0]] -= duration
        own[name] += duration
        around.append((name, start + duration))
    return own


def traced(folder: Path) -> Counter[str]:
    """Nanoseconds by instruction that a trace tells of, all threads or streams together.

    Raises:
      RuntimeError: it tells of none.
    """
    (file,) = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    # An accelerator's own, if there are any: the host only hands the work to it then.
    planes = [p for p in planes if p.name.startswith("/device:")] or planes
    total: Counter[str] = Counter()
    for line in (line for plane in planes for line in plane.lines):
        events = ((dict(e.stats).get("hlo_op"), e.start_ns, e.duration_ns) for e in line.events)
        for name, own in own_times(e for e in events if e[0]).items():
            total[name] += own
    if not total:
        raise RuntimeError(f"the trace of {jax.devices()[0]} tells of no instruction")
    return total


def phase_rows(steps: our_steps.OurSteps, phase: str, count: int) -> list[dict[str, Any]]:
    """A row per kind of operation, the longest first, and one for the whole step.

    Args:
      steps: of one case.
      phase: of `KINDS`.
      count: steps that are traced.
    """
    steps.compiled_memory(phase, count)  # compiles
    program, take = Program(steps.phases[phase].step.as_text()), getattr(steps, phase)
    whole = least_seconds(lambda: take(count), 3) / count
    found = kind_times(program, lambda: take(count))
    total = sum(found.values())
    rows = [
        {"operations": what, "way": way, "ms": nanoseconds / 1e6 / count}
        | {"share": nanoseconds / total}
        for (what, way), nanoseconds in found.most_common()
    ]
    last = {"operations": ALL, "way": "", "ms": total / 1e6 / count, "whole_ms": 1e3 * whole}
    return [environment.rounded({"part": phase, **row}) for row in (*rows, last)]


def kind_times(program: Program, call: Callable[[], Any]) -> Counter[tuple[str, str]]:
    """Nanoseconds by kind of operation that a call of the program takes, traced."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            call()
        found: Counter[tuple[str, str]] = Counter()
        for instruction, nanoseconds in traced(Path(folder)).items():
            found[program.kind(instruction)] += nanoseconds
    return found


def run(size: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and summary: what takes a tenth or more."""
    case = Case(size["network"], size["batch_size"])
    rows = []
    for phase in KINDS:
        print(f"compiling: {phase}", flush=True)
        rows += phase_rows(our_steps.OurSteps(case, resident=False), phase, size["steps"])
    summary = {
        f"{row['part']}, {row['operations']} {row['way']}": row["share"]
        for row in rows
        if row.get("share", 0) >= 0.1
    }
    about = {"seeds": [SEED], **size, "data": "noise", "notes": NOTES, "targets": {}}
    return about | {"rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    parser = environment.argument_parser(__doc__)
    parser.add_argument("--network", help="a preset; default, CIFAR with 5 exits")
    parser.add_argument("--batch", type=int, help="images per step")
    arguments = parser.parse_args()
    size = dict(QUICK if arguments.quick else FULL)
    size["network"] = arguments.network or size["network"]
    size["batch_size"] = arguments.batch or size["batch_size"]
    environment.write_result(arguments.out, (jax, flax, np), run(size))


if __name__ == "__main__":
    start_with_huge_pages()  # as launch.py does
    main()
