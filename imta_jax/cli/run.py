"""A run and its folder: which steps it has, which are done, and that its config stays the same.

What a training does not need before its first step (drawing, timing, looking) is imported when it
is due: it takes seconds.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imta_jax.data import Dataset, load_dataset
from imta_jax.data.fingerprint import fingerprint, fingerprint_differences
from imta_jax.distributed import data_mesh, first_process_first, is_first_process, wait_for_all
from imta_jax.errors import unknown_name
from imta_jax.evaluation import check_evaluation_config, evaluate, evaluation_is_finished
from imta_jax.runtime.config_diff import IGNORED_SECTIONS, config_differences, to_json_types
from imta_jax.runtime.files import write_json
from imta_jax.runtime.lock import only_run_in
from imta_jax.training import (
    PHASES,
    check_training_config,
    check_training_data,
    executable_label,
    phase_is_finished,
    prefetch_executable,
    train_phase_one,
    train_phase_two,
    training_pipeline,
)

_log = logging.getLogger(__name__)

MODES = ("all", "doctor", "data", "phase_one", "phase_two", "evaluate", "time", "report")


def run(config: ConfigDict | Mapping[str, Any], workdir: str | Path, mode: str = "all") -> None:
    """Does the steps of a run that are not yet done; the same call goes on after an interruption.

    Args:
      config: a whole config (configs/common.py), as a ConfigDict or as nested mappings.
      workdir: the run's folder, made if need be.
      mode: "all", or one step of `MODES`. A finished step is not run twice; "report" is drawn
        again when it is asked for by name; "time" measures what the exits of an evaluated run cost
        in milliseconds on this device, and adds it to the report. "doctor" and "data" train nothing
        and are no steps of a run: they tell what it would be made of, and draw what training would
        see.

    Raises:
      ValueError: an unknown mode, a config that does not fit, or not the one the folder belongs to.
      FileNotFoundError: a dataset, or the result of an earlier step, is not there.
      BlockingIOError: another run is at work in the folder.
      Interrupted: the process was told to stop, and what was trained is saved.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, (*MODES, "study"))
    workdir = Path(workdir)
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    if "arms" in config:
        raise ValueError("this is the config of a study: add --mode=study")
    if mode == "doctor":
        from imta_jax.cli.doctor import examine

        print(examine(config, _prepare(config), workdir))
        return
    if mode == "data":
        _look_at_data(config, workdir)
        return
    if mode == "time":
        from imta_jax.inference.timing import time_run

        time_run(workdir)
    elif mode != "report":
        _compute(config, workdir, mode)
    page = workdir / "report" / "index.html"
    if not is_first_process():
        return
    if mode in ("report", "time") or (mode == "all" and not page.exists()):
        from imta_jax.report import write_report

        write_report(workdir)
    if mode in ("all", "report", "time"):
        _log.info("report: %s", page)


def _look_at_data(config: Mapping[str, Any], workdir: Path) -> None:
    """Draws batches, class balance and pace into the folder's `data`."""
    from imta_jax.data.preview import write_preview
    from imta_jax.report import write_data_page

    dataset, mesh, folder = load_dataset(config["data"]), data_mesh(), workdir / "data"
    write_preview(
        config["data"],
        dataset,
        folder,
        pipeline=training_pipeline(config["data"], dataset, mesh),
        batch_size=config["phase_one"]["batch_size"],
        seed=config["seed"],
        mesh=mesh,
    )
    _log.info("data: %s", write_data_page(folder))


def _compute(config: Mapping[str, Any], workdir: Path, mode: str) -> None:
    """The steps that need the data and the devices."""
    begun = _is_begun(config, workdir)
    steps: dict[str, tuple[bool, Callable[[Mapping[str, Any], Dataset, Path], Any]]] = {
        "phase_one": (phase_is_finished(config, workdir, "phase_one"), train_phase_one),
        "phase_two": (phase_is_finished(config, workdir, "phase_two"), train_phase_two),
        "evaluate": (evaluation_is_finished(workdir), evaluate),
    }
    chosen = {name: step for name, step in steps.items() if mode in ("all", name)}
    for name, (finished, _) in chosen.items():
        if finished:
            _log.info("%s: already done in %s", name, workdir)
    due = {name: step for name, (finished, step) in chosen.items() if not finished}
    if begun and not due:
        return
    for phase in [name for name in due if name in PHASES][:1]:
        prefetch_executable(executable_label(config, phase))
    dataset = _prepare(config)
    data = fingerprint(dataset)
    if begun:
        _check_same_data(data, workdir)
    # Only now: a run that was refused leaves no folder.
    with only_run_in(workdir) if is_first_process() else contextlib.nullcontext():
        if is_first_process():
            for part in workdir.rglob(".*.partial"):  # of a run that was killed while it wrote
                part.unlink()
            # Before the config: where that is, the run has begun, and with these data.
            write_json(workdir / "dataset.json", data)
            if not _is_begun(config, workdir):
                write_json(workdir / "config.json", to_json_types(config))
        for step in due.values():
            step(config, dataset, workdir)
        wait_for_all("a run's steps are done")


def _prepare(config: Mapping[str, Any]) -> Dataset:
    """Loads the data and finds now, not after hours, whatever does not fit."""
    check_training_config(config)
    check_evaluation_config(config)
    dataset = first_process_first(lambda: load_dataset(config["data"]))
    check_training_data(config, dataset)
    return dataset


def _check_same_data(data: Mapping[str, Any], workdir: Path) -> None:
    """A ValueError unless the data are those that the folder's run began with.

    A run of a version that did not keep them goes on.
    """
    path = workdir / "dataset.json"
    found = fingerprint_differences(json.loads(path.read_text()), data) if path.exists() else []
    if found:
        raise ValueError(
            f"{workdir} belongs to a run that began with other data; bring them back, or use"
            " another --workdir:\n  " + "\n  ".join(found)
        )


def _is_begun(config: Mapping[str, Any], workdir: Path) -> bool:
    """Whether the folder holds a config.json; a ValueError unless that is this config.

    Only what changes no result beyond rounding may differ.
    """
    path = workdir / "config.json"
    if not path.exists():
        return False
    theirs, ours = (
        {name: part for name, part in whole.items() if name not in IGNORED_SECTIONS}
        for whole in (json.loads(path.read_text()), to_json_types(config))
    )
    differences = config_differences(theirs, ours)
    if differences:
        raise ValueError(
            f"{workdir} belongs to a run with another config; use another --workdir, or the same "
            "values:\n  " + "\n  ".join(differences)
        )
    return True
