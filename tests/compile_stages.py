"""Compiles an export for chips that are not attached: `compile_stages.py FOLDER TOPOLOGY`.

Prints a JSON object per program: its name, and forbidden instructions in it.
"""

import json
import sys
from pathlib import Path

import jax

from imta_jax.distributed import data_mesh, replicated
from imta_jax.inference.export.programs import read_program
from imta_jax.planning.devices import load_devices
from imta_jax.planning.profile import arrays_of_type, host_transfers
from imta_jax.planning.topologies import parse_topology

BATCH = 8


def main(folder, topology):
    chips = parse_topology(topology)
    sharding = replicated(data_mesh(load_devices(chips)[:1]))
    for path in sorted(Path(folder).glob("*.stablehlo")):
        exported = read_program(path)
        if chips.chip.platform not in exported.platforms:
            continue  # a form for CPUs
        shapes = [
            jax.ShapeDtypeStruct(
                [size if isinstance(size, int) else BATCH for size in x.shape],
                x.dtype,
                sharding=sharding,
            )
            for x in exported.in_avals
        ]
        arguments, _ = jax.tree.unflatten(exported.in_tree, shapes)
        text = jax.jit(exported.call).lower(*arguments).compile().as_text()
        faults = [*host_transfers(text), *arrays_of_type(text, "f64")]
        print(json.dumps({"program": path.name, "faults": faults}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
