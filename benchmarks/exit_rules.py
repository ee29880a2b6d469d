"""Compares exit rules at equal cost, on the saved logits of evaluated runs.

    python benchmarks/exit_rules.py runs/cifar100 --out=benchmarks/results/exit_rules.json

Gains are differences in top-1 from the confidence, the paper's rule, with bootstrap intervals over
test images.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import result_file
from imta_jax.evaluation import compare_exit_rules, load_predictions
from imta_jax.runtime.json_files import read_json
from imta_jax.runtime.paths import path_argument

BUDGETS, SEED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 0


def compare(workdir: Path) -> list[dict]:
    """The rows of one run."""
    results = read_json(workdir / "results.json", "evaluate the run with --mode=evaluate")
    splits = (
        load_predictions(workdir / "evaluation" / f"logits_{name}.npz")
        for name in ("validation", "test")
    )
    costs = [row["macs"] for row in results["exits"]]
    return compare_exit_rules(*splits, costs, BUDGETS, seed=SEED)


def main() -> None:
    """Prints the comparison and writes it as JSON."""
    parser = result_file.argument_parser(__doc__ or "")
    parser.add_argument(
        "workdir", nargs="+", type=path_argument("workdir"), help="folders of evaluated runs"
    )
    arguments = parser.parse_args()
    rows = [{"part": path.name, **row} for path in arguments.workdir for row in compare(path)]
    gains = [row for row in rows if row["rule"] != "confidence"]
    best = max(gains, key=lambda row: row["gain_low"])
    summary = {f"gain of {best['rule']} at budget {best['budget']:g}": best["gain"]}
    result_file.write_result(
        arguments.out,
        (),
        {"seeds": {"bootstrap": SEED}, "rows": rows, "summary": summary, "targets": {}},
    )


if __name__ == "__main__":
    main()
