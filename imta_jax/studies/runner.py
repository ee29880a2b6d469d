"""Runs a study: trains and evaluates the variants and seeds that have no result yet.

Variants that start from the same phase-I network share it, per seed. Variants that differ only in
the heads and loss of phase II share each pass through the backbone, see `joint_phase_two`. The row
of a variant and seed is a file, written when its run is done, so that the same command resumes.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imta_jax.config import PHASES, RunConfig
from imta_jax.data import Dataset, DatasetInfo
from imta_jax.data.fingerprint import fingerprint
from imta_jax.distributed import wait_for_all
from imta_jax.evaluation.results import dataset_record
from imta_jax.runtime.agreement import run_in_all_processes, run_in_first_process
from imta_jax.runtime.factories import unread_options_raise
from imta_jax.runtime.files import write_json
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.runtime.lock import lock_workdir
from imta_jax.runtime.paths import local_path
from imta_jax.runtime.progress_bar import format_duration
from imta_jax.runtime.run_header import log_run_header
from imta_jax.studies.config import StudyConfig
from imta_jax.studies.phase_one_group import PhaseOneGroup, VariantPredictions
from imta_jax.studies.plan import (
    check_settings_unchanged,
    data_key,
    group_by,
    load_datasets,
    read_row_settings,
    row_settings,
    variant_costs,
)
from imta_jax.studies.report import write_study_report
from imta_jax.studies.rows import (
    cost_rows,
    gradient_variance_results,
    prediction_results,
    training_seconds,
    validation_curve,
)
from imta_jax.studies.study_file import has_row, row_path, write_record
from imta_jax.studies.variants import Variant, study_variants
from imta_jax.training import NonFiniteLossError
from imta_jax.training.phases import trained_phase_one
from imta_jax.training.process_checks import (
    check_folder_is_shared,
    check_same_data_in_all,
    check_same_settings,
)
from imta_jax.training.setup import phase_settings

_log = logging.getLogger(__name__)


def run_study(
    config: StudyConfig | ConfigDict | Mapping[str, Any], workdir: str | Path
) -> dict[str, Any]:
    """Trains and evaluates the missing runs of a study; draws its tables and figures.

    Args:
      config: config of a study, from `configs/studies/NAME.py`. Variants and seeds may be added
        later. Existing results are kept.
      workdir: folder of one or more studies. They share their phase-I networks in `networks`
        (`NETWORK/seed_S/`, with the second phases that start from it). Each study has a folder of
        its name with `study.json` and `rows/`. `report/` covers all of them.

    Returns:
      The content of `study.json`.

    Raises:
      ValueError: not a study, an invalid variant, or a folder with results of other settings.
      BlockingIOError: another run uses the folder.
      Interrupted: the process received SIGTERM or SIGINT; training state is saved.
      FileNotFoundError: see `load_dataset`. A study without seeds does not need images.
    """
    workdir = local_path("--workdir", workdir)
    study = run_in_all_processes(lambda: StudyConfig.from_mapping(config))
    variants = run_in_all_processes(lambda: study_variants(study))
    _check_same_study(study, variants)
    folder = workdir / study.name
    settings = row_settings(study, variants)
    run_in_all_processes(lambda: check_settings_unchanged(settings, folder))
    is_recorded = settings.keys() <= read_row_settings(folder).keys()
    with contextlib.nullcontext() if is_recorded else unread_options_raise():
        runner = _StudyRunner(study, folder, variants, load_datasets(study, variants))
    log_run_header(workdir)
    with contextlib.ExitStack() as stack:
        run_in_first_process(lambda: stack.enter_context(lock_workdir(workdir)))
        check_folder_is_shared(workdir)
        recorded = folder / "arms.json"
        run_in_first_process(lambda: write_json(recorded, read_row_settings(folder) | settings))
        record = runner.run()
        run_in_first_process(lambda: _write_report(workdir))
        wait_for_all("a study is done")
    return record


def _check_same_study(study: StudyConfig, variants: Sequence[Variant]) -> None:
    """Checks that all processes were started with the same study, variants and seeds."""
    others = {
        "config.study": study.name,
        "config.seeds": list(study.seeds),
        "config.gradient_variance_images": study.gradient_variance_images,
    }
    configs = {f"config.arms.{variant.name}": variant.config for variant in variants}
    check_same_settings("study", configs, others)


def _write_report(workdir: Path) -> None:
    """Writes the report on all studies of the folder."""
    paths = sorted(workdir.glob("*/study.json"))
    records = [r for p in paths if (r := read_json_or_none(p, "run its study again"))]
    _log.info("report: %s", write_study_report(records, workdir / "report"))


class _StudyRunner:
    """Trains and evaluates the missing runs of one study."""

    def __init__(
        self,
        study: StudyConfig,
        folder: Path,
        variants: Sequence[Variant],
        datasets: Mapping[str, Dataset | DatasetInfo],
    ):
        self._study, self._folder, self._variants = study, folder, variants
        self._datasets, self._costs = datasets, variant_costs(variants, datasets)
        if jax.process_count() > 1:
            for dataset in datasets.values():
                if isinstance(dataset, Dataset):
                    check_same_data_in_all(fingerprint(dataset))

    def run(self) -> dict[str, Any]:
        """Runs all groups with missing rows and returns the content of `study.json`."""
        todo, start = list(self._missing_groups()), time.monotonic()
        for done, group in enumerate(todo):
            left = (time.monotonic() - start) / max(done, 1) * (len(todo) - done)
            _log.info(
                "study: network %d of %d%s: seed %d, variants %s",
                done + 1,
                len(todo),
                f", about {format_duration(left)} left" if done else "",
                group.seed,
                " ".join(variant.name for variant in group.variants),
            )
            self._run_group(group)
            self._write_record()
            # Compiled programs of finished networks would exhaust the process's memory maps.
            jax.clear_caches()
        return self._write_record()

    def _missing_groups(self) -> Iterator[PhaseOneGroup]:
        """Yields seed by seed, so that an interrupted study has all variants of the first seeds."""
        for seed in self._study.seeds:
            for members in group_by(self._variants, lambda v: v.phase_one_key).values():
                due = [v for v in members if not has_row(self._folder, v.name, seed)]
                if due:
                    dataset = self._datasets[data_key(due[0])]
                    assert isinstance(dataset, Dataset)  # A study with seeds loads the images.
                    yield PhaseOneGroup(due, seed, dataset, self._folder.parent / "networks")

    def _run_group(self, group: PhaseOneGroup) -> None:
        try:
            group.train_phase_one()
        except NonFiniteLossError as error:
            for variant in group.variants:
                self._write_row(variant, group.seed, _failed_row(error))
            return
        shared = self._phase_one_results(group)
        for outcomes in group.train_and_evaluate():
            # All rows are computed before the first is written. If only some were written, the
            # next call would train the remaining variants as another joint group.
            rows = [(v, self._row(v, group, shared, result)) for v, result in outcomes]
            for variant, row in rows:
                self._write_row(variant, group.seed, row)

    def _phase_one_results(self, group: PhaseOneGroup) -> dict[str, Any]:
        """The part of a row that all variants of a group share."""
        config, folder = group.variants[0].with_seed(group.seed), group.folder / "phase_one"
        images, variance = self._study.gradient_variance_images, None
        if images > 0:
            classifier = trained_phase_one(config, group.dataset, group.folder)
            variance = gradient_variance_results(config, group.dataset, classifier, images)
        return {
            "seconds": training_seconds(folder, config.phase_one),
            "curve": validation_curve(folder, slice(None)),
            "gradient_variance": variance,
        }

    def _row(
        self,
        variant: Variant,
        group: PhaseOneGroup,
        shared: Mapping[str, Any],
        result: VariantPredictions | NonFiniteLossError,
    ) -> dict[str, Any]:
        if isinstance(result, NonFiniteLossError):
            return _failed_row(result)
        config, folder = variant.with_seed(group.seed), result.phase_two
        return {
            "status": "done",
            "schedule": _schedule(config),
            **prediction_results(
                config,
                self._costs[variant.name],
                result.validation,
                result.test,
                keep_ranks=group.seed == self._study.seeds[0],
            ),
            "validation_curve": {
                "phase_one": shared["curve"],
                "phase_two": validation_curve(folder, result.exits) if folder else [],
            },
            "gradient_variance": shared["gradient_variance"],
            # Variants that were trained jointly report the time of their joint phase II.
            "seconds": {
                "phase_one": shared["seconds"],
                "phase_two": training_seconds(folder, config.phase_two) if folder else 0.0,
            },
        }

    def _write_row(self, variant: Variant, seed: int, row: Mapping[str, Any]) -> None:
        path = row_path(self._folder, variant.name, seed)
        if row["status"] == "failed":
            message = "variant %s, seed %d failed: %s; delete %s to try again"
            _log.warning(message, variant.name, seed, row["error"], path)
        else:
            top1 = " ".join(f"{entry['top1']:.1f}" for entry in row["exits"])
            message = "study: variant %s, seed %d: test top-1 per exit %s"
            _log.info(message, variant.name, seed, top1)
        run_in_first_process(lambda: write_json(path, {"arm": variant.name, "seed": seed, **row}))

    def _write_record(self) -> dict[str, Any]:
        """Writes `study.json` from the rows that exist; returns {} in other processes."""
        costs = {name: cost_rows(by_exit) for name, by_exit in self._costs.items()}
        data = next(iter(self._datasets.values()))
        described = dataset_record(data) if isinstance(data, Dataset) else {"name": data.name}
        record: dict[str, Any] = {}
        run_in_first_process(
            lambda: record.update(
                write_record(self._folder, self._study, self._variants, costs, described)
            )
        )
        return record


def _failed_row(error: NonFiniteLossError) -> dict[str, Any]:
    return {"status": "failed", "error": str(error)}


def _schedule(config: RunConfig) -> dict[str, Any]:
    phases = {name: phase_settings(config, name) for name in PHASES}
    return {
        name: {"epochs": phase.total_epochs, "batch_size": phase.batch_size}
        if phase.total_epochs
        else None
        for name, phase in phases.items()
    }
