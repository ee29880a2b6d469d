"""Reads the fields of `config.model` into a backbone's own dataclass, and checks them."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from imta_jax.config import ModelConfig
from imta_jax.errors import InputError, unknown_name
from imta_jax.models.presets import NETWORK_PRESETS

Spec = TypeVar("Spec")


# Fields omitted at their defaults, so that records match earlier checkpoints.
_OPTIONAL_FIELDS = {"options": {}, "heads": "independent", "heads_options": {}}


def explicit_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config that are not None, without `preset` and default heads."""
    values = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {
        name: value
        for name, value in values
        if value is not None and name != "preset" and value != _OPTIONAL_FIELDS.get(name)
    }


def read_spec(kind: type[Spec], config: ModelConfig) -> Spec:
    """Makes a backbone's dataclass from the explicit fields.

    Args:
      kind: a dataclass. Fields without a default are required.
      config: config with its preset resolved.

    Raises:
      InputError: a field that the backbone does not have, or required fields that are missing.
    """
    settings = explicit_fields(config)
    backbone = settings.pop("backbone", "msdnet")
    if config.options:
        raise InputError(
            f"config.model.options must be empty with backbone {backbone!r}, which takes other "
            f"fields of config.model; found {config.options}"
        )
    for name in ("heads", "heads_options"):
        settings.pop(name, None)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    for name in settings:
        if name not in fields:
            label = f"field of config.model with backbone {backbone!r}:"
            raise unknown_name(label, name, fields)
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    missing = ", ".join(sorted(required - set(settings)))
    if missing:
        raise InputError(
            f"config.model lacks {missing}; set them, or choose a network with "
            f"config.model.preset ({', '.join(NETWORK_PRESETS)})"
        )
    return kind(**settings)


def check_positive(spec: Any, *names: str) -> None:
    """Raises an InputError unless the named fields are above 0."""
    for name in names:
        value = getattr(spec, name)
        if value < 1:
            raise InputError(f"config.model.{name} must be at least 1; found {value}")


def check_one_of(spec: Any, name: str, valid: Iterable[str]) -> None:
    """Raises an InputError that lists the valid names unless the field is one of them."""
    if getattr(spec, name) not in valid:
        raise unknown_name(f"config.model.{name}", getattr(spec, name), valid)


def check_depths(spec: Any, groups: int | None = None) -> None:
    """Raises an InputError unless `depths` has entries above 0, `groups` of them if given."""
    depths = spec.depths
    if not depths or min(depths) < 1 or groups not in (None, len(depths)):
        count = "one or more" if groups is None else groups
        raise InputError(
            f"config.model.depths must be a tuple of {count} integers above 0, one per "
            f"resolution; found {depths!r}"
        )


def check_exits(spec: Any) -> None:
    """Raises an InputError unless `exits` are increasing and below the number of blocks."""
    exits, last = spec.exits, sum(spec.depths)
    if list(exits) != sorted({e for e in exits if 0 < e < last}):
        raise InputError(
            f"config.model.exits must be increasing block numbers from 1 to {last - 1} (the last "
            f"block, {last}, always has an exit); found {exits!r}"
        )
