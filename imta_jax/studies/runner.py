"""Runs a study: what is not yet done of it, sharing phase I and passes through frozen backbones.

Variants that start from the same phase-I network share it, per seed. Variants whose second phase
differs only in heads and loss share each pass through the backbone (`studies.variant_training`).
A row is a file, written when its variant is finished, so that the same command resumes a study.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from imta_jax.data import Dataset, DatasetInfo, dataset_info, load_dataset
from imta_jax.distributed import first_process_first, is_first_process, wait_for_all
from imta_jax.evaluation import ExitCosts, exit_costs
from imta_jax.evaluation.run import describe_data
from imta_jax.runtime.config_diff import IGNORED_SECTIONS, config_differences, to_json_types
from imta_jax.runtime.files import write_json
from imta_jax.runtime.lock import only_run_in
from imta_jax.runtime.progress_bar import format_duration
from imta_jax.studies.network import Judged, SharedNetwork
from imta_jax.studies.record import row_path, write_record
from imta_jax.studies.report import write_evidence
from imta_jax.studies.rows import (
    cost_rows,
    measured,
    measured_gradients,
    seconds_of,
    validation_curve,
)
from imta_jax.studies.variants import Arm, study_arms
from imta_jax.training import NonFiniteLossError
from imta_jax.training.phases import (
    check_training_data,
    new_phase_one,
    new_phase_two,
    trained_phase_one,
)

_log = logging.getLogger(__name__)


def run_study(config: ConfigDict | Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
    """Trains and judges whatever a study lacks, and draws its tables and figures.

    Args:
      config: of a study, configs/studies/NAME.py. Arms and seeds may be added to a study that has
        begun; those that are there stay as they are.
      workdir: its folder, in which several studies share their phase-I networks: `NETWORK/seed_S/`
        in `networks`, with the second phases on them; `study.json` and `rows/` in a folder of the
        study's name; `report/` on all studies there.

    Returns:
      What `study.json` holds.

    Raises:
      ValueError: no study, an arm that does not fit, or a folder whose arms had other configs.
      BlockingIOError: another run is at work in the folder.
      Interrupted: the process was told to stop, and what was trained is saved.
      FileNotFoundError, ...: as `load_dataset`; a study without seeds needs no images.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    arms = study_arms(config)
    workdir = Path(workdir)
    folder = workdir / config["study"]
    needed = _dataset if config["seeds"] else _facts
    datasets = {key: needed(members[0]) for key, members in _by(arms, _data_key).items()}
    known = {arm.name: _of_a_row(arm, config) for arm in arms}
    _refuse_other_arms(known, folder)
    with only_run_in(workdir) if is_first_process() else contextlib.nullcontext():
        if is_first_process():
            folder.mkdir(exist_ok=True)
            write_json(folder / "arms.json", _read_arms(folder) | known)
        record = _Study(config, folder, arms, datasets).run()
        if is_first_process():
            all_there = [json.loads(p.read_text()) for p in sorted(workdir.glob("*/study.json"))]
            _log.info("report: %s", write_evidence(all_there, workdir / "report"))
        wait_for_all("a study is done")
    return record


def _by(arms: Sequence[Arm], key: Callable[[Arm], str]) -> dict[str, list[Arm]]:
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(key(arm), []).append(arm)
    return groups


def _data_key(arm: Arm) -> str:
    return json.dumps(arm.config["data"], sort_keys=True, default=list)


def _dataset(arm: Arm) -> Dataset:
    dataset = first_process_first(lambda: load_dataset(arm.config["data"]))
    check_training_data(arm.config, dataset)
    return dataset


def _facts(arm: Arm) -> DatasetInfo:
    """Enough to tell costs by, where nothing is to be trained."""
    return dataset_info(arm.config["data"])


def _read_arms(folder: Path) -> dict[str, Any]:
    path = folder / "arms.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _of_a_row(arm: Arm, config: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what an arm's rows hold, besides the seed."""
    images = config["gradient_variance_images"]
    return to_json_types(arm.config) | {"gradient_variance_images": images}


def _refuse_other_arms(arms: Mapping[str, Any], folder: Path) -> None:
    """Raises a ValueError if an arm of this name was run with another config."""
    earlier, lines = _read_arms(folder), []
    for arm in arms.keys() & earlier.keys():
        theirs, ours = (
            {name: part for name, part in whole[arm].items() if name not in IGNORED_SECTIONS}
            for whole in (earlier, arms)
        )
        lines += config_differences(theirs, ours, f"arms.{arm}")
    if lines:
        shown = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise ValueError(
            f"{folder} belongs to a study with other arms; use another --workdir, or the same "
            "values:\n  " + "\n  ".join(shown)
        )


def _costs(
    arms: Sequence[Arm], datasets: Mapping[str, Dataset | DatasetInfo]
) -> dict[str, ExitCosts]:
    """Costs per arm; traced once for arms of the same network and heads."""
    found: dict[str, ExitCosts] = {}
    traced: dict[str, ExitCosts] = {}
    for arm in arms:
        dataset, two = datasets[_data_key(arm)], arm.config["phase_two"]
        heads = two["transfer"] if two["total_epochs"] else None
        key = json.dumps([arm.config["model"], heads, _data_key(arm)], default=list)
        if key not in traced:
            classifier = new_phase_one(arm.config, dataset)
            classifier = new_phase_two(arm.config, classifier) if heads else classifier
            traced[key] = exit_costs(classifier)
        found[arm.name] = traced[key]
    return found


class _Study:
    """The work of one study."""

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        arms: Sequence[Arm],
        datasets: Mapping[str, Dataset | DatasetInfo],
    ):
        self._config, self._folder, self._arms = config, folder, arms
        self._datasets, self._costs = datasets, _costs(arms, datasets)

    def run(self) -> dict[str, Any]:
        """Goes through what is to be done and returns the whole record."""
        todo, start = list(self._todo()), time.monotonic()
        for done, network in enumerate(todo):
            left = (time.monotonic() - start) / max(done, 1) * (len(todo) - done)
            _log.info(
                "study: network %d of %d%s: seed %d, arms %s",
                done + 1,
                len(todo),
                f", about {format_duration(left)} left" if done else "",
                network.seed,
                " ".join(arm.name for arm in network.arms),
            )
            self._run_network(network)
            self._write()
            # Programs of networks that are done with would fill the process's memory maps.
            jax.clear_caches()
        return self._write()

    def _todo(self) -> Iterator[SharedNetwork]:
        """Seed by seed, so that a study that is stopped has whole sets of arms."""
        for seed in self._config["seeds"]:
            for members in _by(self._arms, lambda arm: arm.phase_one_key).values():
                due = [a for a in members if not row_path(self._folder, a.name, seed).exists()]
                if due:
                    dataset = self._datasets[_data_key(due[0])]
                    yield SharedNetwork(due, seed, dataset, self._folder.parent / "networks")

    def _run_network(self, network: SharedNetwork) -> None:
        try:
            network.train_phase_one()
        except NonFiniteLossError as error:
            for arm in network.arms:
                self._keep(arm, network.seed, _failed(error))
            return
        common = self._of_phase_one(network)
        for outcomes in network.outcomes():
            # Rows of arms that were trained together are written together: what is left of such a
            # group would be trained as another one.
            rows = [(arm, self._row(arm, network, common, outcome)) for arm, outcome in outcomes]
            for arm, row in rows:
                self._keep(arm, network.seed, row)

    def _of_phase_one(self, network: SharedNetwork) -> dict[str, Any]:
        """What the rows of all arms on a network have in common."""
        config, folder = network.arms[0].seeded(network.seed), network.folder / "phase_one"
        images, variance = self._config["gradient_variance_images"], None
        if images > 0:
            classifier = trained_phase_one(config, network.dataset, network.folder)
            variance = measured_gradients(config, network.dataset, classifier, images)
        return {
            "seconds": seconds_of(folder, config["phase_one"]["batch_size"]),
            "curve": validation_curve(folder, slice(None)),
            "gradient_variance": variance,
        }

    def _row(
        self,
        arm: Arm,
        network: SharedNetwork,
        common: Mapping[str, Any],
        outcome: Judged | NonFiniteLossError,
    ) -> dict[str, Any]:
        if isinstance(outcome, NonFiniteLossError):
            return _failed(outcome)
        two, folder = arm.config["phase_two"], outcome.phase_two
        return {
            "status": "done",
            "schedule": _schedule(arm.config),
            **measured(
                arm.seeded(network.seed),
                self._costs[arm.name],
                outcome.validation,
                outcome.test,
                keep_ranks=network.seed == self._config["seeds"][0],
            ),
            "validation_curve": {
                "phase_one": common["curve"],
                "phase_two": validation_curve(folder, outcome.exits) if folder else [],
            },
            "gradient_variance": common["gradient_variance"],
            # Those of a second phase are shared by the arms that were trained together.
            "seconds": {
                "phase_one": common["seconds"],
                "phase_two": seconds_of(folder, two["batch_size"]) if folder else 0.0,
            },
        }

    def _keep(self, arm: Arm, seed: int, row: Mapping[str, Any]) -> None:
        path = row_path(self._folder, arm.name, seed)
        if row["status"] == "failed":
            _log.warning("arm %s, seed %d failed: %s; delete %s to try again",
                         arm.name, seed, row["error"], path)  # fmt: skip
        else:
            top1 = " ".join(f"{entry['top1']:.1f}" for entry in row["exits"])
            _log.info("study: arm %s, seed %d: test top-1 per exit %s", arm.name, seed, top1)
        if is_first_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"arm": arm.name, "seed": seed, **row})

    def _write(self) -> dict[str, Any]:
        """Writes `study.json` as far as the study is."""
        if not is_first_process():
            return {}
        costs = {name: cost_rows(found) for name, found in self._costs.items()}
        data = next(iter(self._datasets.values()))
        described = describe_data(data) if isinstance(data, Dataset) else {"name": data.name}
        return write_record(self._folder, self._config, self._arms, costs, described)


def _failed(error: NonFiniteLossError) -> dict[str, Any]:
    return {"status": "failed", "error": str(error)}


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    phases = {name: config[name] for name in ("phase_one", "phase_two")}
    return {
        name: {"epochs": phase["total_epochs"], "batch_size": phase["batch_size"]}
        if phase["total_epochs"]
        else None
        for name, phase in phases.items()
    }
