"""Trains, adapts, evaluates and reports: flags, set-up and dispatch, nothing else.

python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
python launch.py --config=configs/cifar100.py:published --workdir=runs/cifar100 --mode=phase_one \
    --config.model.preset=cifar_5_exits --config.phase_one.total_epochs=3
"""

import gc
import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from imta_jax.runtime.command_line import end_with, parse_flags
from imta_jax.runtime.huge_pages import restart_with_huge_pages

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, or file.py:preset.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run's files go; made if need be.")
_MODE = flags.DEFINE_string("mode", "all", "One step, or doctor, data, study, all; see README.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/imta_jax", "Where compiled programs are kept; empty for nowhere."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Tell where an error comes from, too.")
# Several processes: found in the surroundings (Cloud TPU, Slurm, Kubernetes, Open MPI), or given.
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes compute together.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def _set_up() -> None:
    """Joins the other processes; plain log lines; programs that are compiled once per machine."""
    import jax

    from imta_jax.distributed import is_first_process, join_processes

    join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)

    # Orbax tells every step of every save, and of what fails, which reaches us as errors too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    own = logging.getLogger("imta_jax")
    own.addHandler(handler)
    own.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    own.propagate = False
    # Tracing a deep network makes millions of objects that stay: looking through them for garbage
    # as often as Python does by default takes a third of the time.
    gc.set_threshold(100_000, 50, 50)
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_CACHE.value))
        # By default what compiles within a second is not kept, and there are some of those.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    else:
        jax.config.update("jax_enable_compilation_cache", False)


def main(argv: list[str]) -> None:
    """Runs the steps of a run that are not yet done, or the one that `--mode` names."""
    from imta_jax.cli.run import run
    from imta_jax.training import EXIT_CODE, Interrupted, install_sigterm_handler

    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        _set_up()
        install_sigterm_handler()
        if _MODE.value == "study":
            from imta_jax.studies import run_study

            run_study(_CONFIG.value, Path(_WORKDIR.value))
        else:
            run(_CONFIG.value, Path(_WORKDIR.value), _MODE.value)
    except Interrupted as stopped:
        logging.getLogger("imta_jax").warning("%s; the same command goes on", stopped)
        sys.exit(EXIT_CODE)
    except Exception as error:
        end_with(error, whole=_TRACEBACK.value)


if __name__ == "__main__":
    restart_with_huge_pages()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
