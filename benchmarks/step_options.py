"""Measures time and memory of a phase-I step with the options that trade one for the other.

Options: bfloat16, rematerialized stages, gradient accumulation, and several steps per dispatch.
Reported are the time per step and the temporary memory of the compiled step.

    python benchmarks/step_options.py --out=benchmarks/results/step_options.json
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np

from benchmarks import measurement, result_file
from benchmarks.cases import SEED, Case, Losses
from benchmarks.jax_steps import JaxSteps
from benchmarks.measurement import spread, take_turns
from imta_jax.runtime.huge_pages import restart_with_huge_pages

FULL = {"network": "cifar_5_exits", "batch_size": 64, "rounds": 9, "steps": 8}
QUICK = FULL | {"network": "quickstart", "batch_size": 16, "rounds": 3, "steps": 2}
PLAIN = "default"
# Option -> precision of the case, and arguments of `JaxSteps`.
OPTIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    PLAIN: ("float32", {"on_device": False}),
    "bfloat16": ("bfloat16", {"on_device": False}),
    "rematerialize": ("float32", {"on_device": False, "rematerialize": True}),
    "accumulate_parts=4": ("float32", {"on_device": False, "accumulate_parts": 4}),
    "steps in one dispatch": ("float32", {"on_device": True}),
}


def run(size: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and summary."""
    memory, timed = {}, {}
    losses: dict[str, Losses] = {}
    for name, (precision, settings) in OPTIONS.items():
        print(f"compiling: {name}", flush=True)
        steps = JaxSteps(Case(size["network"], size["batch_size"], precision), **settings)
        memory[name] = round(steps.compiled_memory("phase_one", size["steps"]) / 1e6, 1)
        timed[name] = _timed(steps, size["steps"], losses.setdefault(name, []))
    seconds = take_turns(timed, size["rounds"])
    rows = [
        {"part": "options", "option": name, "ms": spread(1e3 * seconds[name])}
        | {"memory_mb": memory[name], "losses": sum(losses[name])}
        for name in OPTIONS
    ]
    ratios = {f"time of {n}": seconds[n] / seconds[PLAIN] for n in OPTIONS if n != PLAIN}
    summary = measurement.medians(ratios)
    summary |= {f"memory of {name}": memory[name] / memory[PLAIN] for name in OPTIONS}
    header = {"seeds": [SEED], **size, "data": "noise", "targets": {}}
    return header | {"rows": rows, "summary": summary}


def _timed(steps: JaxSteps, count: int, last: Losses) -> Callable[[int], float]:
    """A contender: seconds per step over `count` steps of phase I; stores the losses in `last`."""

    def turn(_: int) -> float:
        start = time.perf_counter()
        last[:] = steps.phase_one(count)
        return (time.perf_counter() - start) / count

    return turn


def main() -> None:
    """Measures, prints the tables and writes the result."""
    arguments = result_file.argument_parser(__doc__).parse_args()
    result = run(QUICK if arguments.quick else FULL)
    result_file.write_result(arguments.out, (jax, flax, np), result)


if __name__ == "__main__":
    restart_with_huge_pages()  # as launch.py does
    main()
