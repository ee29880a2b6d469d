"""The paper's full schedules on GPUs and TPUs: hours and memory, from compiled programs.

    python benchmarks/paper_schedules.py --out=benchmarks/results/paper_schedules.json

Plans both phases and the evaluation with the batches and epochs of the paper (CIFAR: 64, 300 + 180;
ImageNet: 256, 90 + 90), up to buffer assignment. Nothing is executed.
Pairs of network and topology that are already in the file are kept, so that the script resumes.
"""

from typing import Any

from benchmarks import result_file
from benchmarks.compiled_programs import (
    has_row,
    kept_rows,
    paper_config,
    print_progress,
    write_rows,
)
from imta_jax.planning.plan import Plan, make_plan
from imta_jax.planning.topologies import parse_topology

NETWORKS = (
    *("cifar_5_exits", "cifar_7_exits", "cifar_8_exits", "cifar_even_10_exits"),
    *("imagenet_step_4", "imagenet_step_6", "imagenet_step_7"),
)
TOPOLOGIES = ("h100:1", "h100:8", "v5e:2x4")
QUICK = ("cifar_4_exits", TOPOLOGIES[0])


def main() -> None:
    """Compiles, prints the table and writes the result after each plan."""
    parser = result_file.argument_parser(__doc__ or "")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    arguments = parser.parse_args()
    pairs = [(n, t) for n in arguments.networks for t in arguments.topologies]
    rows = kept_rows(arguments.out)
    for network, topology in [QUICK] if arguments.quick else pairs:
        if not has_row(rows, network, topology):
            rows.append(row_of(network, topology))
            write_rows(arguments.out, rows, {}, {})


def row_of(network: str, topology: str) -> dict[str, Any]:
    """Memory and hours of the paper's schedule of a network on a topology."""
    result = make_plan(paper_config(network), parse_topology(topology), report=print_progress)
    return {"part": topology, "network": network, "topology": topology} | plan_row(result)


def plan_row(plan: Plan) -> dict[str, Any]:
    """The numbers of a plan that the table shows."""
    row: dict[str, Any] = {"fits": plan.fits}
    for program in plan.programs:
        needed, estimate = program.compiled.memory_bytes, program.estimate
        row[program.name] = {
            "images_per_chip": program.compiled.info.images_per_chip,
            "memory_gb": None if needed is None else round(needed / 1e9, 3),
            "step_ms": estimate and round(1e3 * estimate.step.expected, 3),
            "messages": program.profile and dict(program.profile.step.collectives),
            "messages_in_a_row": program.profile and program.profile.chain,
            "messages_ms": estimate and round(1e3 * estimate.messages.expected, 3),
        }
    for name, hours in plan.hours.items():
        row[f"hours_{name}"] = {
            "low": round(hours.low, 4),
            "expected": round(hours.expected, 4),
            "high": round(hours.high, 4),
        }
    return row


if __name__ == "__main__":
    main()
