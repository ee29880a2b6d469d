"""Preparation of a study: datasets, costs per exit, and a check of earlier variants."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imta_jax.config import RunConfig
from imta_jax.data import Dataset, DatasetInfo, dataset_info, load_dataset
from imta_jax.distributed import first_process_first
from imta_jax.errors import InputError
from imta_jax.evaluation import ExitCosts, exit_costs
from imta_jax.runtime.config_diff import IGNORED_SECTIONS, config_differences, to_json_types
from imta_jax.runtime.json_files import read_json_or_none
from imta_jax.studies.config import StudyConfig
from imta_jax.studies.variants import Variant
from imta_jax.training.checks import check_training_data
from imta_jax.training.setup import new_phase_one, new_phase_two

# Differing fields that an error message lists.
_MAX_LISTED_FIELDS = 20


def group_by(
    variants: Sequence[Variant], key: Callable[[Variant], str]
) -> dict[str, list[Variant]]:
    """Groups variants by a key; groups and their members keep the order of the variants."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(key(variant), []).append(variant)
    return groups


def data_key(variant: Variant) -> str:
    """A string that is equal for variants that train on the same dataset."""
    return json.dumps(variant.config.data.to_dict(), sort_keys=True)


def load_datasets(
    study: StudyConfig, variants: Sequence[Variant]
) -> dict[str, Dataset | DatasetInfo]:
    """Loads the dataset of each `data_key`; without seeds its shape and classes suffice."""
    load = _load_training_data if study.seeds else _load_info
    return {key: load(members[0]) for key, members in group_by(variants, data_key).items()}


def _load_training_data(variant: Variant) -> Dataset:
    dataset = first_process_first(lambda: load_dataset(variant.config.data))
    check_training_data(variant.config, dataset)
    return dataset


def _load_info(variant: Variant) -> DatasetInfo:
    return dataset_info(variant.config.data)


def variant_costs(
    variants: Sequence[Variant], datasets: Mapping[str, Dataset | DatasetInfo]
) -> dict[str, ExitCosts]:
    """Costs per exit by variant name; variants with equal network and heads are counted once."""
    costs: dict[str, ExitCosts] = {}
    counted: dict[str, ExitCosts] = {}
    for variant in variants:
        config, dataset = variant.config, datasets[data_key(variant)]
        second = config.phase_two
        heads = (second.transfer, second.transfer_options) if second.total_epochs else None
        key = json.dumps([config.model.to_dict(), heads, data_key(variant)])
        if key not in counted:
            classifier = new_phase_one(config, dataset)
            classifier = new_phase_two(config, classifier) if heads else classifier
            counted[key] = exit_costs(classifier)
        costs[variant.name] = counted[key]
    return costs


def row_settings(study: StudyConfig, variants: Sequence[Variant]) -> dict[str, dict[str, Any]]:
    """By variant name, all settings that determine the content of its rows, except the seed."""
    images = study.gradient_variance_images
    return {
        variant.name: to_json_types(variant.config.to_dict()) | {"gradient_variance_images": images}
        for variant in variants
    }


def read_row_settings(folder: Path) -> dict[str, Any]:
    """The settings of all variants that a study's folder has rows of."""
    path = folder / "arms.json"
    return read_json_or_none(path, "settings of earlier rows are not compared") or {}


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that change results. Fields that an older version did not record have defaults."""
    images = {"gradient_variance_images": settings["gradient_variance_images"]}
    sections = {name: settings[name] for name in settings.keys() - images.keys()}
    config = to_json_types(RunConfig.from_mapping(sections).to_dict())
    return {name: config[name] for name in config if name not in IGNORED_SECTIONS} | images


def check_settings_unchanged(settings: Mapping[str, Any], folder: Path) -> None:
    """Checks that variants that the folder has rows of have the settings of those rows.

    Args:
      settings: return value of `row_settings`.
      folder: folder of the study.

    Raises:
      ValueError: a variant of the same name was run with other settings.
    """
    earlier, lines = read_row_settings(folder), []
    for name in settings.keys() & earlier.keys():
        before, now = (_comparable(recorded[name]) for recorded in (earlier, settings))
        lines += config_differences(before, now, f"arms.{name}")
    if lines:
        more = len(lines) - _MAX_LISTED_FIELDS
        listed = lines[:_MAX_LISTED_FIELDS] + ([f"... and {more} more"] if more > 0 else [])
        raise InputError(
            f"{folder} has results of variants with other settings; use another --workdir, or "
            "restore these values:\n  " + "\n  ".join(listed)
        )
