"""Compilation of a program in a process of its own, up to buffer assignment or completely.

XLA's code generation takes 95% of the time to compile for a TPU. Memory, layouts and
collectives are known before it, after buffer assignment, which takes seconds. XLA cannot be asked
to stop there. So the worker process dumps each stage to a folder, and is ended when the files of
the buffer assignment are complete.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from imta_jax.config import RunConfig
from imta_jax.errors import InputError, ServiceError
from imta_jax.planning.chips import Chip
from imta_jax.planning.data_description import DataDescription
from imta_jax.planning.devices import COMPILER_ENVIRONMENT
from imta_jax.planning.dump import Dump, assigned_bytes
from imta_jax.planning.launches import Launches, launches_of
from imta_jax.planning.programs import ProgramInfo
from imta_jax.planning.topologies import Topology

_POLL_SECONDS = 0.2
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")  # the line of a traceback that names the error
# Code of the v5e programs that were compiled completely: 35 MB for 344 kernels (quickstart), 94 MB
# for 964 and 192 MB for 1680 (5 and 7 exits).
_CODE_BYTES_PER_KERNEL = 110e3


@dataclasses.dataclass(frozen=True)
class Request:
    """A program to compile.

    Attributes:
      config: the run's config.
      data: sizes of its data.
      topology: the chips.
      program: its name.
      on_device_data: whether training images are stored on the devices.
      full: whether code is generated.
      save: file for the executable, if `full`.
    """

    config: RunConfig
    data: DataDescription
    topology: Topology
    program: str
    on_device_data: bool
    full: bool = False
    save: Path | None = None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report on a program.

    Attributes:
      info: the program's description; None if it was not lowered.
      text: optimized HLO; "" if the program needs more memory than a chip has.
      memory_bytes: memory on one chip; None if it does not fit and the compiler gives no number.
      parts: its parts by name, where they are known.
      fits: whether the compiler could place all arrays.
      full: whether code was generated.
      trace_seconds: time of tracing and lowering.
      compile_seconds: time that XLA compiled.
      cpu_seconds: CPU time of the process that traced and compiled.
      float64: whether the traced program has arrays of this type.
      cpu_forms: names in the traced program of forms that are for CPUs.
      launches: what the host launches in a step; None without generated code for a GPU.
    """

    info: ProgramInfo
    text: str
    memory_bytes: float | None
    parts: dict[str, float]
    fits: bool
    full: bool
    trace_seconds: float
    compile_seconds: float
    cpu_seconds: float = 0.0
    float64: bool = False
    cpu_forms: tuple[str, ...] = ()
    launches: Launches | None = None


def compile_program(request: Request) -> Compiled:
    """Compiles a program in a process of its own.

    Raises:
      InputError: the config does not fit the topology.
      ServiceError: the process ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="imta_jax_plan_") as name:
        folder = Path(name)
        _write_request(request, folder)
        dump = Dump(folder / "dump", request.topology.chip)
        start = time.perf_counter()
        cpu_seconds = _run_worker(request, folder, dump)
        seconds = time.perf_counter() - start
        if (folder / "error.json").exists():
            compiled = _failed(folder, request, seconds)
        elif (folder / "compiled.json").exists():
            compiled = _complete(dump, folder)
        else:
            compiled = _assigned(dump, folder, request.topology.chip, seconds)
        return dataclasses.replace(compiled, cpu_seconds=cpu_seconds)


def _write_request(request: Request, folder: Path) -> None:
    dump = {"xla_dump_to": str(folder / "dump"), "xla_dump_hlo_as_text": True}
    content = {
        "config": request.config.to_dict(),
        "data": request.data.to_dict(),
        "topology": request.topology.name,
        "program": request.program,
        "on_device_data": request.on_device_data,
        "compiler_options": {} if request.full and not _reads_launches(request) else dump,
        "save": str(request.save) if request.save else None,
    }
    (folder / "request.json").write_text(json.dumps(content))


def _reads_launches(request: Request) -> bool:
    """Whether the launches are read from a dump, which a saved executable is compiled without."""
    return request.full and request.topology.chip.platform == "cuda" and not request.save


def _run_worker(request: Request, folder: Path, dump: Dump) -> float:
    """Runs the worker to its end or, in fast mode, until XLA has assigned buffers.

    Returns:
      The CPU seconds of the worker.
    """
    worker = ["-m", "imta_jax.planning.worker", str(folder), str(os.getpid())]
    command = [sys.executable, *worker]
    environment = {**os.environ, **COMPILER_ENVIRONMENT}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            is_assigned = False
            while not (is_assigned or _has_ended(process)):
                time.sleep(_POLL_SECONDS)
                is_assigned = not request.full and dump.is_complete()
        finally:
            os.kill(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    written = [(folder / name).exists() for name in ("compiled.json", "error.json")]
    if not (is_assigned or any(written)):
        raise ServiceError(_worker_failure(request, folder, process.returncode))
    return usage.ru_utime + usage.ru_stime


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended. It is not reaped, so that its CPU time can be read."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _worker_failure(request: Request, folder: Path, status: int) -> str:
    lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if _ERROR.match(line)]
    reason = (errors or lines or ["no output"])[-1][:500]
    if status == -9:
        reason = "it was killed, probably because the machine has too little memory"
    return f"compiling {request.program} for {request.topology.name} failed: {reason}"


def _traced(folder: Path) -> tuple[ProgramInfo, dict[str, Any]]:
    """The program's description, and what tracing it has shown, as fields of `Compiled`."""
    program = json.loads((folder / "program.json").read_text())
    return ProgramInfo(**program.pop("info")), {**program, "cpu_forms": tuple(program["cpu_forms"])}


def _failed(folder: Path, request: Request, seconds: float) -> Compiled:
    error = json.loads((folder / "error.json").read_text())
    if "message" in error:
        raise InputError(error["message"])
    info, traced = _traced(folder)
    return Compiled(
        info=info,
        text="",
        memory_bytes=error["needed_bytes"],
        parts={},
        fits=False,
        full=request.full,
        compile_seconds=seconds - traced["trace_seconds"],
        **traced,
    )


def _complete(dump: Dump, folder: Path) -> Compiled:
    info, traced = _traced(folder)
    sizes = json.loads((folder / "compiled.json").read_text())
    seconds = sizes.pop("compile_seconds")
    return Compiled(
        info=info,
        text=(folder / "compiled.txt").read_text(),
        memory_bytes=sum(sizes.values()),
        parts=sizes,
        fits=True,
        full=True,
        compile_seconds=seconds,
        launches=launches_of(dump.launches(), steps=info.steps),
        **traced,
    )


def _assigned(dump: Dump, folder: Path, chip: Chip, seconds: float) -> Compiled:
    """The result of fast mode. Code is not part of XLA's report and is estimated."""
    info, traced = _traced(folder)
    text, report = dump.read()
    parts: dict[str, float] = {"array_bytes": assigned_bytes(report)}
    if chip.platform == "tpu":
        parts["code_bytes"] = text.count(" fusion(") * _CODE_BYTES_PER_KERNEL
    return Compiled(
        info=info,
        text=text,
        memory_bytes=sum(parts.values()),
        parts=parts,
        fits=True,
        full=False,
        compile_seconds=seconds - traced["trace_seconds"],
        **traced,
    )
