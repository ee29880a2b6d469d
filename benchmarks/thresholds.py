"""Measures time and memory of every method that chooses thresholds.

The logits are synthetic: 10,000 validation and 10,000 test images, 7 exits, 1,000 classes, and
later exits are more accurate. There are 40 budgets. Methods are timed one by one on their inputs,
and together in `compare_methods`, with confidence intervals.

    python benchmarks/thresholds.py --out=benchmarks/results/thresholds.json

Each round of the full comparison is a fresh process. Its peak memory includes the logits of both
splits. Generating the logits is not timed.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import scipy

from benchmarks import measurement, result_file
from imta_jax.evaluation.budget import curve_of_outcomes, outcomes
from imta_jax.evaluation.methods import comparison
from imta_jax.evaluation.methods.monotone_frontier import monotone_frontier
from imta_jax.evaluation.methods.optimized import optimized_thresholds
from imta_jax.evaluation.methods.patience import patience_exits
from imta_jax.evaluation.methods.risk_control import GUARANTEES, risk_controlled_thresholds
from imta_jax.evaluation.methods.temperature import scaled_confidence, temperatures
from imta_jax.evaluation.predictions import Predictions, confidence, predicted

SEED, BUDGETS = 0, 40
FULL = {"images": 10_000, "exits": 7, "classes": 1000, "rounds": 5}
QUICK = FULL | {"rounds": 2}
TARGETS = {"all_methods_seconds": "under 5 on 2 cores", "peak_memory_gb": "under 4"}
NOTES = {
    "all_methods_seconds": "compare_methods: confidences and temperatures of both splits, all"
    " methods, bootstrap intervals of every point",
    "peak_memory_gb": "of a process that holds the logits of both splits (float32)",
    "one_by_one": "from logits (confidence, temperature) or from confidences (the others)",
}


def synthetic_logits(size: Mapping[str, int], seed: int) -> Predictions:
    """Logits that favor the label more at later exits and for easier images."""
    exits, images = size["exits"], size["images"]
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, size["classes"], images).astype(np.int32)
    logits = generator.standard_normal((exits, images, size["classes"]), dtype=np.float32)
    skill = np.linspace(3, 5, exits)[:, None] + 0.7 * generator.normal(size=(exits, images))
    easy = 1.5 * generator.normal(size=images)
    logits[:, np.arange(images), labels] += (skill + easy).astype(np.float32)
    return Predictions(logits, labels)


def costs_and_budgets(exits: int) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative costs of stages of growing size, and budgets as fractions of the last cost."""
    costs = 1e8 * np.cumsum(np.linspace(1, 2, exits))
    return costs, np.linspace(1.05 * costs[0] / costs[-1], 0.95, BUDGETS)


def all_methods(size: Mapping[str, int]) -> dict[str, float]:
    """Seconds of the full comparison in this process, and its peak memory."""
    splits = synthetic_logits(size, SEED), synthetic_logits(size, SEED + 1)
    costs, budgets = costs_and_budgets(size["exits"])
    before, start = measurement.memory_gb("VmRSS"), measurement.clocks()
    comparison.compare_methods(*splits, costs, budgets)
    seconds, cpu_seconds = measurement.clocks() - start
    result = {"seconds": seconds, "processor_seconds": cpu_seconds}
    return result | {"held_before_gb": before, "peak_gb": measurement.memory_gb("VmHWM")}


def one_by_one(size: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Seconds of each method in this process, per round."""
    logits, labels = validation = synthetic_logits(size, SEED)
    costs, budgets = costs_and_budgets(size["exits"])
    seen, classes = outcomes(validation), predicted(logits)
    fitted, curve = temperatures(logits, labels), curve_of_outcomes(seen, seen, costs)
    contenders = {
        "confidence": lambda: confidence(logits),
        "sweep": lambda: curve_of_outcomes(seen, seen, costs),
        "envelope": lambda: monotone_frontier(curve),
        "optimised": lambda: optimized_thresholds(*seen, costs, budgets * costs[-1]),
        "temperature": lambda: temperatures(logits, labels),
        "scaled_confidence": lambda: scaled_confidence(logits, fitted),
        "patience": lambda: [patience_exits(classes, p + 1) for p in range(len(classes))],
    }
    for name in GUARANTEES:
        contenders[name] = lambda name=name: risk_controlled_thresholds(
            *seen, comparison.DEFAULT_TOLERANCES, guarantee=name
        )
    timed = {name: lambda _, work=work: _seconds(work) for name, work in contenders.items()}
    return measurement.take_turns(timed, size["rounds"])


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(size: Mapping[str, int]) -> dict[str, Any]:
    """Rows and summary."""
    separate = measurement.in_own_process(one_by_one, size)
    rows = [
        {"part": "one by one", "method": name, "seconds": measurement.spread(seconds)}
        for name, seconds in separate.items()
    ]
    comparisons = [measurement.in_own_process(all_methods, size) for _ in range(size["rounds"])]
    columns = {
        name: np.array([comparison[name] for comparison in comparisons]) for name in comparisons[0]
    }
    together = {name: measurement.spread(values) for name, values in columns.items()}
    rows.append({"part": "all methods", "budgets": BUDGETS, **size, **together})
    summary = {
        "all_methods_seconds": together["seconds"]["median"],
        "peak_memory_gb": together["peak_gb"]["most"],
        "spread": {"all_methods_seconds": together["seconds"]},
    }
    return {"seeds": [SEED], "notes": NOTES, "targets": TARGETS, "rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    arguments = result_file.argument_parser(__doc__).parse_args()
    result = run(QUICK if arguments.quick else FULL)
    result_file.write_result(arguments.out, (np, scipy), result)


if __name__ == "__main__":
    main()
