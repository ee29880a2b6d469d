"""Runs Python programs in forked processes, so that several programs import their modules once.

Each program has its own flags and modules, and exits with its own status.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import compile_flags

ROOT = Path(__file__).parent.parent
LAUNCH = "from imta_jax.cli.main import start; start()"


def run(
    *calls: Sequence[object], folder: Path = ROOT, imports: str = "imta_jax.cli.run"
) -> list[subprocess.CompletedProcess]:
    """Runs each call's program with its arguments in `folder`, one after the other.

    Args:
      calls: (program, *arguments), where the program is Python code like that of `python -c`.
      folder: the working directory. As for a script elsewhere, it is not on `sys.path`.
      imports: a module that is imported before the processes are forked.
    """
    with tempfile.TemporaryDirectory() as output:
        cases = json.dumps([[str(part) for part in call] for call in calls])
        command = [sys.executable, __file__, output, imports]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": compile_flags.with_devices(1),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "GLIBC_TUNABLES": "",  # Else the command line would restart the process to set it.
        }
        parent = {"cwd": folder, "env": environment, "check": True}
        done = subprocess.run(command, input=cases, stdout=subprocess.PIPE, text=True, **parent)
        return [
            subprocess.CompletedProcess(
                call, code, *((Path(output) / f"{i}.{name}").read_text() for name in (1, 2))
            )
            for i, (call, code) in enumerate(zip(calls, json.loads(done.stdout), strict=True))
        ]


def _fork(output: str, imports: str) -> None:
    cases, codes = json.load(sys.stdin), []
    sys.path.pop(0)  # the folder of this file
    __import__(imports)
    for i, (program, *arguments) in enumerate(cases):
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                file = os.open(f"{output}/{i}.{stream}", os.O_WRONLY | os.O_CREAT)
                os.dup2(file, stream)
            sys.argv = ["launch.py", *arguments]
            exec(program, {"__name__": "__main__"})
            sys.exit()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    _fork(*sys.argv[1:])
