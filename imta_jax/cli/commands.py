"""The console command `imta-jax`: a run as with `launch.py`, or another command of the package.

imta-jax --config=quickstart --workdir=runs/quickstart
imta-jax export runs/quickstart exported
imta-jax inference exported cat.jpg
"""

import importlib
import sys

from imta_jax.errors import closest_first
from imta_jax.runtime.interrupts import interrupts_reported
from imta_jax.runtime.paths import make_working_directory_importable
from imta_jax.runtime.preemption import hold_signals

# Each module has a function `main` that takes the arguments. `python -m` starts the same functions.
COMMANDS = {
    "evaluation": "imta_jax.evaluation.command",
    "export": "imta_jax.inference.export.run_export",
    "inference": "imta_jax.inference.command",
    "models": "imta_jax.models.network_table",
    "studies": "imta_jax.studies.__main__",
}


def main() -> None:
    """Runs the command that the first argument names; without one, starts a run."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name or name.startswith("-"):
        hold_signals()  # before the imports below
        with interrupts_reported("imta-jax"):
            from imta_jax.cli.main import start

        start()
        return
    if name not in COMMANDS:
        valid = ", ".join(closest_first(name, COMMANDS))
        sys.exit(
            f"imta-jax: unknown command {name!r}; valid, the closest first: {valid}; a run takes"
            " only flags: imta-jax --config=quickstart --workdir=runs/quickstart"
        )
    make_working_directory_importable()  # for components that are named by a dotted path
    with interrupts_reported(f"imta-jax {name}"):
        sys.exit(importlib.import_module(COMMANDS[name]).main(sys.argv[2:]))
