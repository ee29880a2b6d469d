"""Programs of all networks, compiled for chips that are not attached: memory, collectives, times.

    python benchmarks/tpu_programs.py --out=benchmarks/results/tpu_programs.json

Compiles the phases and the evaluation of each network as `--mode=plan` does, with 128 images per
chip, up to buffer assignment. Nothing is executed. Pairs of network and topology that are already
in the file are kept, so that the script resumes. `gpu_programs.py` does the same for GPUs.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from benchmarks import result_file
from configs import cifar100, fashion_mnist, imagenet
from imta_jax.config import RunConfig
from imta_jax.planning.plan import make_plan
from imta_jax.planning.report import plan_record
from imta_jax.planning.sweep import with_batch_size
from imta_jax.planning.topologies import parse_topology

FAMILIES = {"cifar": cifar100, "imagenet": imagenet, "fashion": fashion_mnist}
NETWORKS = (
    *("cifar_5_exits", "cifar_7_exits", "imagenet_step_4", "fashion_mnist_4_exits"),
    *("cifar_4_exits", "cifar_6_exits", "cifar_8_exits", "cifar_even_7_exits"),
    *("cifar_even_10_exits", "imagenet_step_6", "imagenet_step_7"),
)
TPUS = ("v5e:2x2", "v5e:16x16", "v6e:2x2", "v5p:2x2x1", "v4:2x2x1")
QUICK = {"networks": NETWORKS[3:4], "images": 16}
IMAGES_PER_CHIP = 128
TARGETS = {
    "phase_one_compiles": "1 (all fit)",
    "all_reduce_bytes_vs_parameters": "at most 1.05",
    "padding_waste": "at most 1.1",
}
NOTE = "compiled and not executed; times are estimates that were never compared with a device"


def main(topologies: Sequence[str] = TPUS) -> None:
    """Compiles, prints the table and writes the result after each plan."""
    parser = result_file.argument_parser(__doc__ or "")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--topologies", nargs="+", default=topologies)
    arguments = parser.parse_args()
    networks, images = arguments.networks, IMAGES_PER_CHIP
    if arguments.quick:
        networks, images = QUICK["networks"], QUICK["images"]
    rows = kept_rows(arguments.out)
    for topology in arguments.topologies[: 1 if arguments.quick else None]:
        for network in networks:
            if not any((row["network"], row["topology"]) == (network, topology) for row in rows):
                rows += rows_of(network, topology, images)
                write(arguments.out, rows)
    write(arguments.out, rows)


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier result, if there is one."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def config_of(network: str, images: int) -> RunConfig:
    """The paper's config of a network with a batch of `images`."""
    config = FAMILIES[network.partition("_")[0]].get_config()
    config.model.preset = network
    return with_batch_size(RunConfig.from_mapping(config), images)


def rows_of(network: str, topology: str, images: int) -> list[dict[str, Any]]:
    """A row per program of a network on a topology."""
    chips = parse_topology(topology)
    config = config_of(network, images * chips.chips)
    result = make_plan(config, chips, report=lambda line: print(line, file=sys.stderr))
    record = plan_record(result)
    hours = record["hours"].get("total")
    header = {"part": topology, "network": network, "topology": topology, "full": record["full"]}
    return [header | row(program) | {"hours": hours} for program in record["programs"]]


def row(program: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a program that the table shows."""
    kept = ("batch_size", "images_per_chip", "fits", "memory_bytes", "padding", "kernels")
    fields = {"program": program["name"]} | {name: program.get(name) for name in kept}
    if "estimate" not in program:
        return fields
    estimate = program["estimate"]
    step, messages = estimate["step"], estimate["messages"]["expected"]
    return fields | {
        "collectives": program["collectives"],
        "sent_bytes": sum(program["collective_bytes"].values()),
        "gradient_bytes": program["gradient_bytes"],
        "messages_in_a_row": program["messages_in_a_row"],
        "step_ms": {name: round(1e3 * seconds, 3) for name, seconds in step.items()},
        "messages_ms": round(1e3 * messages, 3),
        "matrix_floor_ms": round(1e3 * estimate["matrix_floor"], 3),
        "memory_floor_ms": round(1e3 * estimate["memory_floor"], 3),
        "images_per_second": round(program["images_per_second"]["expected"]),
    }


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Headline values, over phase I of all networks, by topology."""
    first = [row for row in rows if row["program"] == "phase_one"]
    values: dict[str, Any] = {}
    for topology in dict.fromkeys(row["topology"] for row in first):
        of_topology = [row for row in first if row["topology"] == topology]
        fitting = [row for row in of_topology if row["fits"]]
        sent = [row["sent_bytes"] / row["gradient_bytes"] for row in fitting]
        values |= {
            f"phase_one_compiles {topology}": len(fitting) / len(of_topology),
            f"all_reduce_bytes_vs_parameters {topology}": max(sent, default=None),
            f"padding_waste {topology}": max((row["padding"] for row in fitting), default=None),
        }
    return values


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Prints and writes the rows and their summary."""
    values = summary(rows)
    write_rows(path, rows, values, {name: TARGETS[name.partition(" ")[0]] for name in values})


def write_rows(
    path: Path,
    rows: list[dict[str, Any]],
    summary: Mapping[str, Any],
    targets: Mapping[str, str],
) -> None:
    """Prints and writes a result of compiled programs."""
    content = {"seeds": [], "notes": NOTE, "rows": rows, "summary": summary, "targets": targets}
    result_file.write_result(path, (jax, flax, np), content)


if __name__ == "__main__":
    main()
