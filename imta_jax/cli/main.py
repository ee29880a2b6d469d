"""Flags, process setup and dispatch of `launch.py` and of the console command `imta-jax`.

JAX is imported late: `start` may restart the process, and errors in flags are reported at once.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, cast

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from imta_jax.runtime.background_errors import hold_background_errors
from imta_jax.runtime.command_line import exit_with_error, parse_flags, with_flag_files
from imta_jax.runtime.free_options import ConfigParser
from imta_jax.runtime.huge_pages import restart_with_huge_pages
from imta_jax.runtime.paths import local_path
from imta_jax.runtime.preemption import (
    EXIT_CODE,
    Interrupted,
    configure_signals_after_join,
    hold_signals,
    install_signal_handlers,
)

# Config flags read `sys.argv` already when they are defined.
sys.argv[:] = with_flag_files(sys.argv)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Name or file of a config, with or without a preset: quickstart, cifar100:published, or"
    " my_configs/mine.py:published.",
)
flags.FLAGS["config"].parser = ConfigParser(flags.FLAGS["config"].parser)
# Not None after `start`, which requires a value.
_WORKDIR = cast(
    "flags.FlagHolder[str]",
    flags.DEFINE_string("workdir", None, "Folder of the run; created if it does not exist."),
)
_MODE = flags.DEFINE_string(
    "mode",
    "all",
    "phase_one, phase_two, evaluate, time, report, doctor, data, plan or study; all does every step"
    " of a run that is not finished.",
)
# Flags of --mode=plan.
_TOPOLOGY = flags.DEFINE_list(
    "topology", None, "Chips to plan for: v5e:16x16 (v4, v5p, v6e), h100:8 (h200), or FILE:8."
)
_FULL = flags.DEFINE_bool("full", False, "Generate code: minutes, with the compiler's cycles.")
_SAVE = flags.DEFINE_bool("save", False, "Save the compiled steps in --workdir for a run there.")
_SWEEP = flags.DEFINE_bool("sweep", False, "Compare the topologies with --images_per_chip.")
_IMAGES_PER_CHIP = flags.DEFINE_list("images_per_chip", ["64", "128", "256"], "Batches of --sweep.")
_PRICE = flags.DEFINE_list("price", [], "Price of a chip-hour for --sweep: v5e=1.20,h100=3.")
_OUT = flags.DEFINE_string("out", None, "JSON file of the plan; the default is in --workdir.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/imta_jax", "Folder of compiled programs; empty disables it."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Print the full traceback of errors.")
# Detected on Cloud TPU, Slurm, Kubernetes and Open MPI.
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, if it is not detected."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 60, "Seconds to wait for the other processes.", lower_bound=1
)
_REQUIRED = {"config": "quickstart", "workdir": "runs/quickstart"}  # Flag -> example.
_PLAN = "plan"


def start() -> None:
    """Parses the command line and runs `main`; the process exits at the end."""
    hold_signals()
    restart_with_huge_pages()
    # The tracing of a deep network creates millions of long-lived objects. With Python's default
    # thresholds, garbage collection takes a third of the tracing time. Imports create no garbage.
    gc.set_threshold(100_000, 50, 50)
    gc.disable()
    install_signal_handlers()
    for name, example in _REQUIRED.items():
        message = f"--{name} is required, for example --{name}={example}"
        flags.register_validator(name, _is_given_or_optional(name), message)
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):  # --help lists these
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=parse_flags)


def _is_given_or_optional(name: str) -> Callable[[Any], bool]:
    """Whether a flag has a value. A plan needs no --workdir; it then writes no files."""
    return lambda value: (
        value is not None or (name == "workdir" and flags.FLAGS["mode"].value == _PLAN)
    )


def main(argv: list[str]) -> None:
    """Runs the unfinished steps of a run, or the mode that `--mode` names."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _MODE.value == _PLAN:  # before JAX is imported
        os.environ["JAX_PLATFORMS"] = "cpu"
    if not _TRACEBACK.value:
        hold_background_errors()
    try:
        from imta_jax.cli.run import run  # raises if no temporary folder can be written

        gc.freeze()  # Excludes imported objects from garbage collection.
        gc.enable()
        _set_up_process()
        if _MODE.value == "study":
            from imta_jax.studies import run_study

            run_study(_CONFIG.value, _WORKDIR.value)
        elif _MODE.value == _PLAN:
            _plan()
        else:
            run(_CONFIG.value, _WORKDIR.value, _MODE.value)
    except Interrupted as error:
        logging.getLogger("imta_jax").warning("%s; run the same command to resume", error)
        sys.exit(EXIT_CODE)
    except Exception as error:
        exit_with_error(error, show_traceback=_TRACEBACK.value)


def _plan() -> None:
    from imta_jax.cli.plan import PlanOptions, plan

    options = PlanOptions(
        topologies=tuple(_TOPOLOGY.value or ()),
        workdir=_WORKDIR.value,
        out=_OUT.value,
        full=_FULL.value,
        save=_SAVE.value,
        sweep=_SWEEP.value,
        images_per_chip=tuple(_IMAGES_PER_CHIP.value),
        prices=tuple(_PRICE.value),
    )
    plan(_CONFIG.value, options)


def _set_up_process() -> None:
    """Configures logging and the compilation cache; joins the other processes."""
    logger = _set_up_logging()
    import jax

    from imta_jax.distributed import is_first_process, join_processes

    join_processes(
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, timeout=_JOIN_TIMEOUT.value
    )
    configure_signals_after_join(jax.process_count())

    if not is_first_process():
        logger.setLevel(logging.WARNING)
    # Orbax logs every step of a save, and errors that are raised as exceptions too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    if _CACHE.value:
        cache = local_path("--compilation_cache", _CACHE.value)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # By default programs that compile within a second are not cached.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    else:
        jax.config.update("jax_enable_compilation_cache", False)


def _set_up_logging() -> logging.Logger:
    """Configures and returns this package's logger. Other packages log warnings only.

    Call it before JAX starts a backend: JAX logs every kind of device that the host does not have.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("imta_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
