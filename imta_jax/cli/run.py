"""A run: its steps, which of them are finished, and the checks before each.

Modules that training does not need (figures, timing, preview) take seconds to import. They are
imported where they are used.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imta_jax.cli.run_records import (
    check_same_config,
    check_same_data,
    data_paths,
    evaluation_differences,
    record_start,
    recorded_config,
    recorded_data,
)
from imta_jax.config import RunConfig
from imta_jax.data import Dataset, load_dataset
from imta_jax.data.fingerprint import EARLIER_DECODER, fingerprint
from imta_jax.data.pipeline.batch_augmentation import BatchAugmentation
from imta_jax.distributed import first_process_first, wait_for_all
from imta_jax.errors import InputError, MissingPackageError, unknown_name
from imta_jax.evaluation import evaluate, evaluation_is_finished
from imta_jax.runtime.agreement import (
    from_first_process,
    run_in_all_processes,
    run_in_first_process,
)
from imta_jax.runtime.factories import unread_options_raise
from imta_jax.runtime.files import write_json
from imta_jax.runtime.lock import check_workdir, create_workdir, lock_workdir
from imta_jax.runtime.optional_packages import require
from imta_jax.runtime.paths import local_path
from imta_jax.runtime.preemption import end_process_on_signals
from imta_jax.runtime.run_header import log_run_header
from imta_jax.studies import is_study
from imta_jax.training import (
    PHASES,
    check_training_config,
    check_training_data,
    executable_label,
    last_phase,
    mesh_of,
    phase_is_finished,
    prefetch_executable,
    train_phase_one,
    train_phase_two,
    training_pipeline,
)
from imta_jax.training.checkpoint_reading import has_readable_epoch
from imta_jax.training.checks import check_field_values, check_initial_parameters
from imta_jax.training.phases import check_trained, why_unfinished
from imta_jax.training.process_checks import (
    check_folder_is_shared,
    check_same_data_in_all,
    check_same_settings,
)
from imta_jax.training.unused_fields import unused_fields

_log = logging.getLogger(__name__)

MODES = ("all", "doctor", "data", "phase_one", "phase_two", "evaluate", "time", "report")


def run(
    config: RunConfig | ConfigDict | Mapping[str, Any], workdir: str | Path, mode: str = "all"
) -> None:
    """Does the unfinished steps of a run; call it again to resume after an interruption.

    Args:
      config: the settings; a ConfigDict or nested mappings (`configs/common.py`) are parsed.
      workdir: local folder of the run; created if it does not exist. `~` is the home folder.
      mode: "all", or one of `MODES`. "phase_one", "phase_two" and "evaluate" are skipped if they
        are finished. "evaluate" evaluates again if `config.evaluation` differs. "report" always
        writes the report. "time" measures the milliseconds per exit of an evaluated run on this
        device and adds them to the report. "doctor" prints and "data" draws what a run would use;
        neither trains, and "doctor" raises an error afterwards if a package of a run is missing.

    Raises:
      ValueError: the mode is unknown, the config or the path is invalid, or the folder belongs to
        a run with another config or other data.
      FileNotFoundError: a dataset or the result of an earlier step does not exist.
      MissingPackageError: a package of the extra `train` is missing.
      BlockingIOError: another run uses the folder.
      Interrupted: the process received SIGTERM; a checkpoint is saved.
    """
    workdir = local_path("--workdir", workdir)
    if mode not in MODES:
        raise unknown_name("mode", mode, (*MODES, "study"))
    if is_study(config):
        raise InputError("this is the config of a study: add --mode=study")
    parsed = run_in_all_processes(lambda: RunConfig.from_mapping(config))
    check_same_settings(mode, {"config": parsed})
    if mode == "doctor":
        from imta_jax.cli.doctor import describe_run

        run_in_first_process(lambda: check_workdir(workdir))
        with unread_options_raise():
            dataset = _load_checked_data(parsed)
        check_initial_parameters(parsed, dataset, workdir)
        print(describe_run(parsed, dataset, workdir))
        _check_packages()
        return
    if mode == "data":
        _preview_data(parsed, workdir)
        return
    if mode == "time":
        from imta_jax.inference.timing import time_run

        time_run(workdir)
    elif mode != "report":
        _run_steps(parsed, workdir, mode)
    end_process_on_signals()
    run_in_first_process(lambda: _report(workdir, mode))


def _report(workdir: Path, mode: str) -> None:
    """Writes the report if the mode asks for it or if "all" finds none.

    Without the packages of the report, "all" logs how to get it: the run's results are complete.
    """
    page = workdir / "report" / "index.html"
    if mode in ("report", "time") or (mode == "all" and not page.exists()):
        try:
            require("report", "writing the report")
        except MissingPackageError as error:
            if mode == "report":
                raise
            _log.warning("no report: %s, then run again with --mode=report", error)
            return
        from imta_jax.report import write_report

        write_report(workdir)
    if mode in ("all", "report", "time"):
        _log.info("report: %s", page)


def _preview_data(config: RunConfig, workdir: Path) -> None:
    """Writes sample batches, class counts and throughput to the folder's `data`."""
    require("report", "--mode=data")
    from imta_jax.data.preview import write_preview
    from imta_jax.report import write_data_page

    dataset, mesh, folder = load_dataset(config.data), mesh_of(config), workdir / "data"
    create_workdir(folder)
    augmentation = BatchAugmentation(config.phase_one, dataset.num_classes, config.seed)
    write_preview(
        config.data,
        dataset,
        folder,
        pipeline=training_pipeline(config.data, dataset, mesh),
        batch_size=config.phase_one.batch_size,
        seed=config.seed,
        mesh=mesh,
        augmentation=augmentation,
    )
    _log.info("data: %s", write_data_page(folder))


def _run_steps(config: RunConfig, workdir: Path, mode: str) -> None:
    """Does the unfinished steps among phase I, phase II and evaluation that the mode names."""
    check_field_values(config)
    recorded = recorded_config(workdir)
    check_same_config(config, recorded, workdir, mode)
    evaluates_again = recorded is not None and bool(evaluation_differences(config, recorded))
    due = _due_steps(config, workdir, mode, evaluates_again=evaluates_again)
    if recorded and not due:
        # Other processes may have other paths, but all must load the data or none.
        if from_first_process(data_paths(recorded) != data_paths(config)):
            _load_run_data(config, workdir)
        return
    _check_inputs(config, workdir, due)
    for phase in [name for name in due if name in PHASES][:1]:
        prefetch_executable(executable_label(config, phase))
    log_run_header(workdir)
    for note in unused_fields(config):
        _log.info("%s", note)
    if "evaluate" in due:
        _check_packages()
    steps: dict[str, Callable[[RunConfig, Dataset, Path], Any]] = {
        "phase_one": train_phase_one,
        "phase_two": train_phase_two,
        "evaluate": evaluate,
    }
    dataset, data_fingerprint = _load_run_data(config, workdir)
    if "phase_one" in due:
        check_initial_parameters(config, dataset, workdir)
    # The folder is created after all checks: a rejected run leaves none.
    with contextlib.ExitStack() as stack:
        run_in_first_process(lambda: stack.enter_context(lock_workdir(workdir)))
        check_folder_is_shared(workdir)
        run_in_first_process(lambda: record_start(config, data_fingerprint, workdir, mode))
        for name in due:
            if name not in PHASES:
                end_process_on_signals()
            steps[name](config, dataset, workdir)
        if evaluates_again:  # results.json now has these settings
            run_in_first_process(lambda: write_json(workdir / "config.json", config.to_dict()))
        wait_for_all("a run's steps are done")


def _check_packages() -> None:
    """Checks the packages without which the evaluation at the end of a run would fail."""
    require("train", "writing the results of an evaluation", "pyarrow")


def _due_steps(config: RunConfig, workdir: Path, mode: str, *, evaluates_again: bool) -> list[str]:
    """The unfinished steps that the mode names, in order; logs why each is due or skipped.

    In mode "all", a step whose result no unfinished step needs is not due: after the evaluation the
    phases' folders may be deleted, and after phase II's first epoch that of phase I.
    """
    has_phase_two = config.phase_two.total_epochs > 0
    finished = {phase: phase_is_finished(config, workdir, phase) for phase in PHASES}
    finished["evaluate"] = evaluation_is_finished(workdir) and not evaluates_again
    has_phase_two_network = has_phase_two and has_readable_epoch(workdir / "phase_two", 1)
    needed = {
        "phase_one": not finished["evaluate"] and not has_phase_two_network,
        "phase_two": not finished["evaluate"],
        "evaluate": True,
    }
    due = []
    for name in [name for name in finished if mode in ("all", name)]:
        if finished[name]:
            _log.info("%s: already done in %s", name, workdir)
        elif mode == "all" and not needed[name]:
            _log.info("%s: not in %s, and no later step needs it", name, workdir)
        else:
            due.append(name)
            if name in PHASES and workdir.exists():
                _log.info("%s: %s", name, why_unfinished(config, workdir, name))
    return due


def _check_inputs(config: RunConfig, workdir: Path, due: Sequence[str]) -> None:
    """Raises a `MissingFileError` if a due step needs a phase that is neither trained nor due."""
    if (
        "phase_two" in due
        and "phase_one" not in due
        and not has_readable_epoch(workdir / "phase_two", 1)
    ):
        check_trained(config, workdir, "phase_one")
    if "evaluate" in due and last_phase(config) not in due:
        check_trained(config, workdir, last_phase(config))


def _load_checked_data(config: RunConfig, decoder: str = "") -> Dataset:
    """Checks the config, loads the data, and checks that the two fit.

    Args:
      config: the settings.
      decoder: decoder of the image files that the run to resume began with; "" for a new run.
    """
    check_training_config(config)
    dataset = first_process_first(lambda: load_dataset(config.data, decoder=decoder))
    check_training_data(config, dataset)
    return dataset


def _load_run_data(config: RunConfig, workdir: Path) -> tuple[Dataset, dict[str, Any]]:
    """Loads the data and its fingerprint, which must equal the recorded one of a resumed run."""
    recorded = recorded_data(workdir)
    decoder = recorded.get("decoder", EARLIER_DECODER) if recorded else ""
    # A run that began with such an option can be resumed.
    with contextlib.nullcontext() if recorded else unread_options_raise():
        dataset = _load_checked_data(config, decoder)
    data_record = fingerprint(dataset)
    check_same_data_in_all(data_record)
    if recorded:
        check_same_data(recorded, data_record, workdir)
    return dataset, data_record
