"""Sweeps: variants of a study that are all combinations of values of fields, or random ones.

`config.sweep.fields` has the values of each field, nested as in a run's config. A tuple lists the
values. A random sweep also takes ranges: ("uniform", low, high), ("log", low, high) for a uniform
logarithm, and ("integer", low, high) with both ends.
"""

import dataclasses
import hashlib
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from imta_jax.errors import InputError
from imta_jax.runtime.config_fields import Section, flat_fields, number

RANGES = ("uniform", "log", "integer")
_SIGNIFICANT_DIGITS = 4  # Random values are rounded to them.
_MAX_SETTINGS = 10_000
_MAX_NAME_LENGTH = 100  # A variant's name is a file name.
# A sampled combination may repeat if all fields list few values.
_ATTEMPTS_PER_SAMPLE = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Section):
    """`config.sweep`; see `configs/studies/sweep.py`."""

    section: ClassVar[str] = "config.sweep"

    fields: dict[str, Any] = dataclasses.field(hash=False)
    mode: Literal["grid", "random"] = "grid"
    samples: int = number(16, at_least=1)
    seed: int = number(0, at_least=0)

    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings of the sweep.

        Returns:
          New values by dotted field, by the name of the variant. More samples keep the earlier
          ones, and the values of a field do not depend on the other fields.

        Raises:
          InputError: no fields, a field without values, a range that is not valid, or too many
            combinations.
        """
        values = dict(flat_fields(self.fields))
        if not values:
            raise InputError(
                "config.sweep.fields is empty; set values, for example "
                '--config.sweep.fields.phase_one.learning_rate="(0.05, 0.1)"'
            )
        for name, entries in values.items():
            _check_values(f"{self.section}.fields.{name}", entries, self.mode)
        combinations = self._random(values) if self.mode == "random" else self._grid(values)
        return {setting_name(setting): setting for setting in combinations}

    def _grid(self, values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        count = math.prod(map(len, values.values()))
        if count > _MAX_SETTINGS:
            raise InputError(
                f"config.sweep.fields has {count:,} combinations, expected at most "
                f'{_MAX_SETTINGS:,}; list fewer values, or set config.sweep.mode="random"'
            )
        for combination in itertools.product(*values.values()):
            yield dict(zip(values, combination, strict=True))

    def _random(self, values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        settings: list[dict[str, Any]] = []
        for attempt in range(self.samples * _ATTEMPTS_PER_SAMPLE):
            setting = {
                name: _drawn(entries, _uniform(self.seed, attempt, name))
                for name, entries in values.items()
            }
            if setting not in settings:
                settings.append(setting)
                yield setting
            if len(settings) == self.samples:
                return


def setting_name(setting: Mapping[str, Any]) -> str:
    """The name of a variant, from its values; a digest if that is too long for a file name."""
    text = "__".join(f"{short}_{value}" for short, value in _texts(setting))
    name = re.sub(r"[^\w.+-]+", "-", text)
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    return f"setting_{hashlib.sha256(repr(sorted(setting.items())).encode()).hexdigest()[:12]}"


def setting_label(setting: Mapping[str, Any]) -> str:
    """The label of a variant in tables."""
    return ", ".join(f"{short} {value}" for short, value in _texts(setting))


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """The last part of each field, or all of it if another field has the same last part."""
    last = {name: name.rpartition(".")[2] for name in fields}
    counts = list(last.values())
    return {name: short if counts.count(short) == 1 else name for name, short in last.items()}


def _texts(setting: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Short names and values."""
    return [(short, _text(setting[name])) for name, short in short_names(setting).items()]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_values(field: str, values: Any, mode: str) -> None:
    if not isinstance(values, tuple) or not values:
        raise InputError(f"{field} must be a tuple of values; found {values!r}")
    if not _is_range(values):
        if len({repr(value) for value in values}) < len(values):
            raise InputError(f"{field} must have different values; found {values!r}")
        return
    if mode != "random":
        raise InputError(f'{field} is the range {values!r}, which needs config.sweep.mode="random"')
    kind, *ends = values
    numeric = len(ends) == 2 and all(
        isinstance(end, int if kind == "integer" else int | float) and not isinstance(end, bool)
        for end in ends
    )
    if not numeric or not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
        lowest = " and low above 0" if kind == "log" else ""
        numbers = "integers" if kind == "integer" else "numbers"
        raise InputError(
            f'{field} must be ("{kind}", low, high) with {numbers}, low below high{lowest}; found '
            f"{values!r}"
        )


def _is_range(values: tuple[Any, ...]) -> bool:
    return isinstance(values[0], str) and values[0] in RANGES


def _uniform(seed: int, sample: int, field: str) -> float:
    """A random number in [0, 1), the same in every version of NumPy."""
    key = np.random.SeedSequence([seed, sample, zlib.crc32(field.encode())])
    return float((np.random.PCG64(key).random_raw() >> 11) * 2.0**-53)


def _drawn(values: tuple[Any, ...], uniform: float) -> Any:
    """A value of a list or of a range."""
    if not _is_range(values):
        return values[int(uniform * len(values))]
    kind, low, high = values
    if kind == "integer":
        return low + int(uniform * (high - low + 1))
    if kind == "log":
        value = math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
    else:
        value = low + uniform * (high - low)
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
