"""The process that compiles one program: `python -m imta_jax.planning.worker FOLDER PARENT`.

It reads `request.json` and writes `program.json` before it compiles, then `compiled.json` and
`compiled.txt`, or `error.json`. In fast mode the parent process ends it before that, as soon as XLA
has written its buffer assignment to the folder `dump` (see `compilation`).
"""

import dataclasses
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

from imta_jax.config import RunConfig
from imta_jax.distributed import data_mesh
from imta_jax.errors import UserError
from imta_jax.planning.data_description import DataDescription
from imta_jax.planning.devices import load_devices
from imta_jax.planning.programs import build_program
from imta_jax.planning.topologies import parse_topology
from imta_jax.runtime.files import write_atomically, write_json
from imta_jax.runtime.parallel_compilation import without_jax_cache
from imta_jax.runtime.saved_executable import save_executable

# "Used 27.46G of 15.75G hbm", or the memory "required for HLO temporaries (27.46G)".
_OUT_OF_MEMORY = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT])")
_FLOAT64 = re.compile(r"\bf64\b|xf64>")
_CPU_FORM = re.compile(r"platform_index|@\w*cpu\w*")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def main(folder: Path, parent: int) -> None:
    """Compiles the program of `folder/request.json`; ends when the process `parent` ends."""
    _exit_with(parent)
    request = json.loads((folder / "request.json").read_text())
    try:
        _compile(request, folder)
    except UserError as error:
        write_json(folder / "error.json", {"message": str(error)})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        _write_out_of_memory(str(error), folder)


def _compile(request: dict[str, Any], folder: Path) -> None:
    start = time.perf_counter()
    config = RunConfig.from_mapping(request["config"])
    data = DataDescription.from_dict(request["data"])
    devices = load_devices(parse_topology(request["topology"]))
    mesh = data_mesh(devices, parameter_shards=config.mesh.parameter_shards)
    on_device = request["on_device_data"]
    program = build_program(request["program"], config, data, mesh, on_device_data=on_device)
    lowered = program.lower()
    seconds = time.perf_counter() - start
    text = lowered.as_text()
    record = {
        "info": dataclasses.asdict(program.info),
        "trace_seconds": seconds,
        # Compilers for TPU replace float64 by pairs of float32.
        "float64": bool(_FLOAT64.search(text)),
        "cpu_forms": sorted(set(_CPU_FORM.findall(text))),
    }
    write_json(folder / "program.json", record)
    start = time.perf_counter()
    with without_jax_cache():
        compiled = lowered.compile(compiler_options=request["compiler_options"])
    memory = memory_record(compiled) | {"compile_seconds": time.perf_counter() - start}
    if request["save"]:
        save_executable(Path(request["save"]), lowered, compiled, devices)
    write_atomically(folder / "compiled.txt", compiled.as_text() or "")
    write_json(folder / "compiled.json", memory)


def memory_record(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one chip: arguments and results, temporary arrays, and code."""
    analysis: Any = compiled.memory_analysis()
    kept = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return {
        "argument_bytes": kept,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "code_bytes": analysis.generated_code_size_in_bytes,
    }


def _write_out_of_memory(message: str, folder: Path) -> None:
    """Records how much memory the program needs, if the compiler says so."""
    write_json(
        folder / "error.json", {"out_of_memory": True, "needed_bytes": needed_bytes(message)}
    )


def needed_bytes(message: str) -> float | None:
    """Bytes that a program needs on one chip, from the compiler's error; None if unknown."""
    match = _OUT_OF_MEMORY.search(message)
    return float(match[1]) * _UNITS[match[2]] if match else None


def _exit_with(parent: int) -> None:
    """Ends this process when its parent ends. A compilation cannot be interrupted otherwise.

    Args:
      parent: ID of the process that started this one, which may have ended since.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
