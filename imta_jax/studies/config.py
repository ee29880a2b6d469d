"""The settings of a study, parsed once from the `ConfigDict` of `configs/studies/NAME.py`.

The config calls a variant an "arm": `config.arms`, `config.chosen` and `config.baseline`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self

from imta_jax.config import RunConfig
from imta_jax.errors import InputError, unknown_name
from imta_jax.runtime.config_fields import flat_fields
from imta_jax.studies.sweep import SweepConfig, setting_label

TECHNIQUES = ("GE", "ISC", "OFA")
# Techniques that the paper does not have (`configs/studies/recipes.py`).
LATER_TECHNIQUES = ("boost", "DFS", "mixed", "L2W")

_STUDY_FIELDS = (
    "study",
    "preset",
    "seeds",
    "baseline",
    "gradient_variance_images",
    "base",
    "chosen",
    "arms",
)
_VARIANT_FIELDS = ("label", "techniques", "against", "changes")


def is_study(config: Any) -> bool:
    """Whether a config, parsed or not, describes a study (configs/studies) rather than a run."""
    return hasattr(config, "items") and "arms" in config and "base" in config


@dataclasses.dataclass(frozen=True)
class VariantConfig:
    """`config.arms.NAME`: one variant, described by the fields of the base config that it changes.

    Attributes:
      label: name in tables and figures.
      techniques: those of `TECHNIQUES` and `LATER_TECHNIQUES` that it uses; None for networks other
        than MSDNet.
      against: name of the variant it is compared with; "" stands for the study's baseline.
      overrides: new values by dotted field, for example `{"phase_one.equilibrium": "off"}`.
    """

    label: str
    techniques: tuple[str, ...] | None
    against: str
    overrides: Mapping[str, Any]

    @classmethod
    def from_mapping(cls, name: str, values: Mapping[str, Any]) -> Self:
        """Parses `config.arms.NAME`.

        Args:
          name: name of the variant.
          values: its fields.

        Raises:
          ValueError: an unknown or missing field, or an unknown technique.
        """
        section = f"config.arms.{name}"
        _check_fields(section, values, _VARIANT_FIELDS)
        techniques = values["techniques"]
        for technique in techniques or ():
            if technique not in (known := TECHNIQUES + LATER_TECHNIQUES):
                raise unknown_name(f"entry of {section}.techniques", technique, known)
        return cls(
            label=str(values["label"]),
            techniques=None if techniques is None else tuple(techniques),
            against=str(values["against"]),
            overrides=MappingProxyType(dict(flat_fields(values["changes"]))),
        )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """All settings of a study.

    Attributes:
      name: `config.study`: which study, for example "ablation"; also the name of its folder.
      preset: which preset of its config file.
      seeds: every variant is trained once per seed; () records costs only.
      baseline: name of the variant that the others are compared with.
      gradient_variance_images: validation images for the gradient variance; 0 skips it.
      base: the config that variants change.
      chosen: names of the variants to run, in the order of the tables.
      variants: `config.arms`: all variants by name.
    """

    name: str
    preset: str
    seeds: tuple[int, ...]
    baseline: str
    gradient_variance_images: int
    base: RunConfig
    chosen: tuple[str, ...]
    variants: Mapping[str, VariantConfig]

    @classmethod
    def from_mapping(cls, config: Any) -> Self:
        """Parses and checks a study's config; an instance of the class is returned unchanged.

        Args:
          config: a `ConfigDict` or nested mappings, see `configs/studies/shared.py`. With
            `config.sweep`, its settings are variants too, which are all chosen by default.

        Raises:
          ValueError: the config of a run, an unknown or missing field, seeds that are not distinct
            integers, or the name of an unknown variant.
        """
        if isinstance(config, cls):
            return config
        if not is_study(config):
            raise InputError(
                "config.arms is missing: --mode=study needs the config of a study, for example "
                "configs/studies/ablation.py:quickstart; omit --mode to train this config"
            )
        values = config.to_dict() if hasattr(config, "to_dict") else config
        sweep = values.get("sweep")
        values = {name: value for name, value in values.items() if name != "sweep"}
        _check_fields("config", values, _STUDY_FIELDS)
        arms = values["arms"]
        variants = {name: VariantConfig.from_mapping(name, arms[name]) for name in arms}
        if sweep is not None:
            variants |= _swept_variants(SweepConfig.from_mapping(sweep))
        chosen = tuple(values["chosen"]) or (tuple(variants) if sweep is not None else ())
        study = cls(
            name=str(values["study"]),
            preset=str(values["preset"]),
            seeds=tuple(values["seeds"]),
            baseline=values["baseline"] or next(iter(chosen), ""),
            gradient_variance_images=values["gradient_variance_images"],
            base=RunConfig.from_mapping(values["base"]),
            chosen=chosen,
            variants=variants,
        )
        study._check()
        return study

    def _check(self) -> None:
        for name in self.chosen:
            self._check_variant_name("config.chosen", name)
        self._check_variant_name("config.baseline", self.baseline)
        for name in self.chosen:
            against = self.variants[name].against
            if against:
                self._check_variant_name(f"config.arms.{name}.against", against)
        valid = all(_is_count(seed) for seed in self.seeds)
        if not valid or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"config.seeds must be distinct integers of at least 0; found {self.seeds}"
            )
        if not _is_count(self.gradient_variance_images):
            raise InputError(
                "config.gradient_variance_images must be an integer of at least 0; found "
                f"{self.gradient_variance_images!r}"
            )

    def _check_variant_name(self, field: str, name: str) -> None:
        if name not in self.variants:
            raise unknown_name(f"variant in {field}", name, self.variants)


def _swept_variants(sweep: SweepConfig) -> dict[str, VariantConfig]:
    return {
        name: VariantConfig(setting_label(setting), None, "", MappingProxyType(setting))
        for name, setting in sweep.settings().items()
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_fields(section: str, values: Mapping[str, Any], fields: Iterable[str]) -> None:
    for name in values:
        if name not in fields:
            raise unknown_name(f"field of {section}", name, fields)
    missing = [f"{section}.{name}" for name in fields if name not in values]
    if missing:
        raise InputError(f"missing {', '.join(missing)}; set a value for each")
