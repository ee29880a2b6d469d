"""Tables of programs that are compiled for chips that are not attached.

Shared by `tpu_programs.py`, `gpu_programs.py` and `paper_schedules.py`. Nothing is executed.
Pairs of network and topology that are already in the file are kept, so that the scripts resume.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from imta_jax.planning.topologies import Topology, parse_topology

FAMILIES = {"cifar": cifar100, "imagenet": imagenet, "fashion": fashion_mnist}
NETWORKS = (
    *("cifar_5_exits", "cifar_7_exits", "imagenet_step_4", "fashion_mnist_4_exits"),
    *("cifar_4_exits", "cifar_6_exits", "cifar_8_exits", "cifar_even_7_exits"),
    *("cifar_even_10_exits", "imagenet_step_6", "imagenet_step_7"),
)
QUICK = {"networks": NETWORKS[3:4], "images": 16}
IMAGES_PER_CHIP = 128
NOTE = "compiled and not executed; times are estimates that were never compared with a device"

Row = dict[str, Any]
# Headline value -> (its target, its value from the rows of phase I on one topology).
Targets = Mapping[str, tuple[str, Callable[[list[Row]], float | None]]]


def main(
    description: str,
    topologies: Sequence[str],
    row: Callable[[Mapping[str, Any]], Row],
    targets: Targets,
    *,
    full: Callable[[Topology], bool] = lambda topology: False,
) -> None:
    """Compiles, prints the table and writes the result after each plan.

    Args:
      description: docstring of the script.
      topologies: names of the topologies, unless the command line names others.
      row: the numbers of a program that the table shows, from `plan_record`.
      targets: headline values of the summary.
      full: whether code is generated for a topology.
    """
    parser = result_file.argument_parser(description)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--topologies", nargs="+", default=topologies)
    arguments = parser.parse_args()
    networks, images = arguments.networks, IMAGES_PER_CHIP
    if arguments.quick:
        networks, images = QUICK["networks"], QUICK["images"]
    rows = kept_rows(arguments.out)
    for topology in arguments.topologies[: 1 if arguments.quick else None]:
        for network in networks:
            if not has_row(rows, network, topology):
                chips = parse_topology(topology)
                rows += rows_of(network, chips, images, row, full=full(chips))
                _write(arguments.out, rows, targets)
    _write(arguments.out, rows, targets)


def kept_rows(path: Path) -> list[Row]:
    """The rows of an earlier result, if there is one."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def has_row(rows: Iterable[Row], network: str, topology: str) -> bool:
    """Whether a network was compiled for a topology."""
    return any((row["network"], row["topology"]) == (network, topology) for row in rows)


def paper_config(network: str) -> RunConfig:
    """The paper's config of a network."""
    config = FAMILIES[network.partition("_")[0]].get_config()
    config.model.preset = network
    return RunConfig.from_mapping(config)


def rows_of(
    network: str,
    topology: Topology,
    images: int,
    row: Callable[[Mapping[str, Any]], Row],
    *,
    full: bool = False,
) -> list[Row]:
    """A row per program of a network on a topology, with `images` per chip."""
    config = with_batch_size(paper_config(network), images * topology.chips)
    result = make_plan(config, topology, full=full, report=print_progress)
    record, name = plan_record(result), topology.name
    hours = record["hours"].get("total")
    header = {"part": name, "network": network, "topology": name, "full": record["full"]}
    return [header | row(program) | {"hours": hours} for program in record["programs"]]


def print_progress(line: str) -> None:
    """Prints a line to standard error; the table goes to standard output."""
    print(line, file=sys.stderr)


def estimated(program: Mapping[str, Any]) -> Row:
    """Collectives and times of a program; {} if it does not fit."""
    if "estimate" not in program:
        return {}
    estimate = program["estimate"]
    return {
        "collectives": program["collectives"],
        "sent_bytes": sum(program["collective_bytes"].values()),
        "gradient_bytes": program["gradient_bytes"],
        "messages_in_a_row": program["messages_in_a_row"],
        "step_ms": {name: round(1e3 * value, 3) for name, value in estimate["step"].items()},
        "messages_ms": round(1e3 * estimate["messages"]["expected"], 3),
        "matrix_floor_ms": round(1e3 * estimate["matrix_floor"], 3),
        "memory_floor_ms": round(1e3 * estimate["memory_floor"], 3),
        "images_per_second": round(program["images_per_second"]["expected"]),
    }


def selected(program: Mapping[str, Any], names: Sequence[str]) -> Row:
    """The program's name and some of its fields; None where there is no value."""
    return {"program": program["name"]} | {name: program.get(name) for name in names}


def all_reduce_bytes_vs_parameters(rows: list[Row]) -> float | None:
    """Bytes of the collectives relative to those of the gradients, the largest of the rows."""
    return max((row["sent_bytes"] / row["gradient_bytes"] for row in fitting(rows)), default=None)


def phase_one_compiles(rows: list[Row]) -> float:
    """Share of the rows that fit."""
    return len(fitting(rows)) / len(rows)


def fitting(rows: list[Row]) -> list[Row]:
    """The rows of programs that fit."""
    return [row for row in rows if row["fits"]]


def summary(rows: Iterable[Row], targets: Targets) -> Row:
    """Headline values, over phase I of all networks, by topology."""
    first = [row for row in rows if row["program"] == "phase_one"]
    values: Row = {}
    for topology in dict.fromkeys(row["topology"] for row in first):
        of_topology = [row for row in first if row["topology"] == topology]
        values |= {f"{name} {topology}": f(of_topology) for name, (_, f) in targets.items()}
    return values


def _write(path: Path, rows: list[Row], targets: Targets) -> None:
    values = summary(rows, targets)
    write_rows(path, rows, values, {name: targets[name.partition(" ")[0]][0] for name in values})


def write_rows(
    path: Path, rows: list[Row], summary: Mapping[str, Any], targets: Mapping[str, str]
) -> None:
    """Prints and writes a result of compiled programs."""
    content = {"seeds": [], "notes": NOTE, "rows": rows, "summary": summary, "targets": targets}
    result_file.write_result(path, (jax, flax, np), content)
