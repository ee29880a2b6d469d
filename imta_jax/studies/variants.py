"""The variants of a study: each is the base config with a few fields changed."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from imta_jax.config import EARLIER_HOLD_OUT, HOLD_OUT, RunConfig
from imta_jax.errors import InputError, unknown_name
from imta_jax.runtime.config_fields import Section
from imta_jax.studies.config import StudyConfig
from imta_jax.training import check_training_config

# The sections of a config that determine the phase-I network, together with the seed.
_PHASE_ONE_SECTIONS = ("data", "model", "phase_one", "mesh")
# Fields that were added after studies had been run. Their defaults do not change the key.
_LATER_FIELDS = (
    *("exif_orientation", "detach", "detach_fraction", "detach_exit", "last_exit_epochs"),
    "sample_weights",
    *("options", "heads", "heads_options", "transfer_options"),
    *("objective", "objective_options"),
    *("optimizer", "optimizer_options", "schedule", "schedule_options", "warmup_epochs"),
    *("gradient_clip_norm", "learning_rate_multipliers", "freeze"),
    *("label_smoothing", "randaugment_operations", "randaugment_magnitude", "random_erasing"),
    *("mixup_alpha", "cutmix_alpha", "source_options"),
    *("ema_decay", "early_stopping_epochs", "init_from", "init_from_map"),
    *("batch_statistics", "statistics_group_size", "matmul_precision"),
    "rematerialize_layers",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A config that a study trains once per seed.

    Attributes:
      name: key in the study; also used in file names.
      label: name in tables and figures.
      techniques: those of GE, ISC and OFA that it uses; None for networks other than MSDNet.
      against: name of the variant it is compared with.
      overrides: values that differ from the base, by dotted field.
      config: the config of its runs.
    """

    name: str
    label: str
    techniques: tuple[str, ...] | None
    against: str
    overrides: Mapping[str, Any]
    config: RunConfig

    def with_seed(self, seed: int) -> RunConfig:
        """Its config with another seed."""
        return dataclasses.replace(self.config, seed=seed)

    @property
    def phase_one_key(self) -> str:
        """A string that is equal for variants that start from the same phase-I network.

        Folder names contain its hash: changing it orphans the networks of existing studies.
        """
        parts = [key_fields(getattr(self.config, name)) for name in _PHASE_ONE_SECTIONS]
        return json.dumps(parts, sort_keys=True)

    @property
    def network(self) -> str:
        """The name of the network's preset, or of its backbone."""
        model = self.config.model
        return model.preset or model.backbone or "custom"


def key_fields(section: Any) -> Any:
    """The fields of a section that determine a network.

    Equal for configs of earlier versions: fields that were added later are omitted at their
    default, and held-out splits have their earlier name.
    """
    if not isinstance(section, Section):
        return section
    defaults = type(section).defaults()
    return {
        name: EARLIER_HOLD_OUT if value == HOLD_OUT else value
        for name, value in section.to_dict().items()
        if name not in _LATER_FIELDS or value != defaults[name]
    }


def study_variants(study: StudyConfig) -> list[Variant]:
    """The chosen variants of a study, in table order; each config is checked.

    Args:
      study: settings of the study.

    Raises:
      ValueError: a variant changes a field that the base does not have, or its config is invalid.
        The message has the variant's name.
    """
    variants = [_variant(study, name) for name in study.chosen]
    for variant in variants:
        try:
            check_training_config(variant.config)
        except ValueError as error:
            raise InputError(f"variant {variant.name}: {error}") from error
    return variants


def unchosen_variants(study: StudyConfig, names: Iterable[str]) -> list[Variant]:
    """The named variants that are not chosen; their configs are parsed, not checked."""
    unchosen = set(names) - set(study.chosen)
    return [_variant(study, name) for name in study.variants if name in unchosen]


def _variant(study: StudyConfig, name: str) -> Variant:
    settings, values = study.variants[name], study.base.to_dict()
    for field, value in settings.overrides.items():
        _set_field(values, name, field, value)
    try:
        config = RunConfig.from_mapping(values)
    except ValueError as error:
        raise InputError(f"variant {name}: {error}") from error
    return Variant(
        name=name,
        label=settings.label,
        techniques=settings.techniques,
        against=settings.against or study.baseline,
        overrides=settings.overrides,
        config=config,
    )


def _set_field(values: dict[str, Any], variant: str, field: str, value: Any) -> None:
    *sections, last = field.split(".")
    for section in sections:
        values = values.get(section, {})
    free = bool(sections) and sections[-1].endswith("options")
    if last not in values and not free:
        raise unknown_name(f"field {field!r} of variant {variant}: no", last, values)
    values[last] = value
