"""Reads the `model` part of a config into a backbone's own fields, and refuses what is not one."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from imta_jax.errors import InputError, unknown_name
from imta_jax.models.presets import NETWORK_PRESETS

Spec = TypeVar("Spec")


def read_fields(kind: type[Spec], config: Mapping[str, Any], backbone: str) -> Spec:
    """Makes a backbone's fields of a config's `model` part (without `backbone` and `preset`).

    Args:
      kind: a dataclass; what has no default must be given.
      config: by name; lists become tuples, as a config read from JSON needs it.
      backbone: its name, for the message.

    Raises:
      ValueError: fields unknown (those of another backbone among them) or missing.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind))}
    for name in config:
        if name not in fields:
            what = f"field of config.model with backbone {backbone!r}:"
            raise unknown_name(what, name, fields)
    optional = {n for n, f in fields.items() if f.default is not dataclasses.MISSING}
    refuse_missing(sorted(set(fields) - optional - set(config)))
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in config.items()})


def refuse_missing(names: Iterable[str]) -> None:
    """Raises a ValueError that lists the fields of `config.model` that were not given, if any."""
    missing = ", ".join(names)
    if missing:
        raise InputError(
            f"config.model lacks {missing}; set them, or name a network with "
            f"config.model.preset ({', '.join(NETWORK_PRESETS)})"
        )


def check_positive(spec: Any, *names: str) -> None:
    """Refuses a field that is no integer above 0, by name, with a ValueError."""
    for name in names:
        value = getattr(spec, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"config.model.{name} must be an integer above 0; found {value!r}")


def check_one_of(spec: Any, name: str, valid: Iterable[str]) -> None:
    """Refuses a name that is not one of the valid ones, with a ValueError that lists them."""
    if getattr(spec, name) not in valid:
        raise unknown_name(f"config.model.{name}", getattr(spec, name), valid)


def check_depths(spec: Any, groups: int | None = None) -> None:
    """Refuses `depths` unless it is a tuple of integers above 0, `groups` of them if given."""
    depths = spec.depths
    whole = isinstance(depths, tuple) and depths and all(type(d) is int and d > 0 for d in depths)
    if not whole or groups not in (None, len(depths)):
        count = "one or more" if groups is None else groups
        raise InputError(
            f"config.model.depths must be a tuple of {count} integers above 0, one per "
            f"resolution; found {depths!r}"
        )


def check_exits(spec: Any) -> None:
    """Refuses `exits` unless they rise and lie before the last of the sum(depths) blocks."""
    exits, last = spec.exits, sum(spec.depths)
    whole = isinstance(exits, tuple) and all(type(e) is int for e in exits)
    if not whole or list(exits) != sorted({e for e in exits if 0 < e < last}):
        raise InputError(
            f"config.model.exits must be rising block numbers from 1 to {last - 1} (an exit after "
            f"the last block, {last}, is always there); found {exits!r}"
        )
