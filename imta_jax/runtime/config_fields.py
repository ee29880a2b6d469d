"""Typed, range-checked fields for frozen config dataclasses.

A config dataclass derives from `Section` and declares its fields with types and, through `number`,
with ranges. Values are checked and converted once, when the dataclass is created:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PhaseConfig(Section):
        section = "config.phase_one"
        learning_rate: float = number(0.1, above=0)

A field of type `dict[str, Any]` holds options of a component, with any names.
"""

import dataclasses
import functools
import math
import numbers
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from imta_jax.errors import InputError, unknown_name
from imta_jax.runtime.registry import Registry


def number(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declares a numeric field, or a tuple of numbers, with a range.

    Args:
      default: value of a field that is not given; without it the field is required.
      at_least: smallest valid value.
      above: exclusive lower bound.
      at_most: largest valid value.
      below: exclusive upper bound.

    Returns:
      A dataclass field; `Section` checks the range of every entry.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    set_bounds = {relation: bound for relation, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"bounds": set_bounds})


def component(default: str, registry: Registry) -> Any:
    """Declares a field that names a component of a registry, or a dotted path to one."""
    return dataclasses.field(default=default, metadata={"registry": registry})


class Section:
    """Base class of config dataclasses.

    Attributes:
      section: dotted name that error messages prefix to a field, for example "config.data".

    Raises:
      ValueError: a field has another type or lies outside its range. The message names the field,
        its value and what was expected.
    """

    section: ClassVar[str] = "config"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            name, kind = f"{self.section}.{field.name}", _types_of(type(self))[field.name]
            value = _converted(getattr(self, field.name), kind, name)
            _check_range(value, field.metadata.get("bounds", {}), name)
            object.__setattr__(self, field.name, value)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default values by field name, of the fields that have one."""
        defaults = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.default is not dataclasses.MISSING:
                defaults[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                defaults[field.name] = field.default_factory()
        return defaults

    def check_components(self) -> None:
        """Finds the component that each field of `component` names, in all nested sections.

        Raises:
          ValueError: a name is unknown, or its module cannot be imported.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, registry = getattr(self, field.name), field.metadata.get("registry")
            if registry is not None:
                registry.get(value, f"{self.section}.{field.name}")
            elif isinstance(value, Section):
                value.check_components()

    @classmethod
    def from_mapping(cls, values: Any) -> Self:
        """Parses a `ConfigDict` or a mapping; an instance of the class is returned unchanged.

        Args:
          values: values by field name. Fields that are missing take their defaults.

        Raises:
          ValueError: an unknown field (the closest valid name comes first), a missing field
            without a default, or a value that does not fit.
        """
        if isinstance(values, cls):
            return values
        if not hasattr(values, "items"):
            raise InputError(f"{cls.section} must be a mapping of fields; found {values!r}")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in fields:
                raise unknown_name(f"field of {cls.section}", name, fields)
        missing = [
            f"{cls.section}.{name}"
            for name, field in fields.items()
            if name not in values and not _has_default(field)
        ]
        if missing:
            raise InputError(f"missing {', '.join(missing)}; set a value for each")
        return cls(**{name: values[name] for name in values})

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dictionaries of plain values, as `config.json` holds them."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


@functools.cache
def _types_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _converted(value: Any, kind: Any, name: str) -> Any:
    """The value in the field's type; lists become tuples and integers may stand for floats."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(option for option in options if option is not types.NoneType)
        return None if value is None else _converted(value, inner, name)
    if origin is Literal:
        if value not in options:
            raise unknown_name(name, value, options)
        return value
    if origin is tuple:
        return _converted_tuple(value, options, name)
    if origin is dict:
        return _converted_options(value, name)
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind.from_mapping(value)
    return _converted_scalar(value, kind, name)


def _converted_tuple(value: Any, options: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    variadic = len(options) == 2 and options[1] is Ellipsis
    if variadic and get_origin(options[0]) is tuple:
        _check_has_tuples(value, get_args(options[0]), name)
    if not isinstance(value, tuple | list):
        raise InputError(f"{name} must be a tuple; found {value!r}")
    kinds = [options[0]] * len(value) if variadic else list(options)
    if len(kinds) != len(value):
        raise InputError(f"{name} must have {len(kinds)} entries; found {value!r}")
    return tuple(
        _converted(entry, kind, f"an entry of {name}" if get_origin(kind) is tuple else name)
        for entry, kind in zip(value, kinds, strict=True)
    )


def _check_has_tuples(value: Any, kinds: tuple[Any, ...], name: str) -> None:
    """Raises an `InputError` unless the value is a tuple of tuples, such as pairs."""
    is_tuple = isinstance(value, tuple | list)
    if is_tuple and all(isinstance(entry, tuple | list) for entry in value):
        return
    size = len(kinds)
    groups = [tuple(value[i : i + size]) for i in range(0, len(value), size)] if is_tuple else []
    is_flat = groups and not any(isinstance(entry, tuple | list) for entry in value)
    hint = f"; for example {tuple(groups)!r}" if is_flat and len(value) % size == 0 else ""
    expected = ", ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise InputError(
        f"each entry of {name} must be a tuple ({expected}), also a single one; found {value!r}"
        f"{hint}"
    )


def _converted_options(value: Any, name: str) -> dict[str, Any]:
    """A nested dictionary of numbers, strings and tuples, equal before and after JSON."""
    if not hasattr(value, "items"):
        raise InputError(f"{name} must be a mapping of options; found {value!r}")
    return {key: _converted_option(entry, f"{name}.{key}") for key, entry in value.items()}


def _converted_option(value: Any, name: str) -> Any:
    if hasattr(value, "items"):
        return _converted_options(value, name)
    if isinstance(value, tuple | list):
        return tuple(_converted_option(entry, name) for entry in value)
    if value is None or isinstance(value, bool | str):
        return value
    for kind, (accepted, _) in ((int, _SCALARS[int]), (float, _SCALARS[float])):
        if isinstance(value, accepted):
            return kind(value)
    raise InputError(
        f"{name} must be a number, a string, True, False, None, or a tuple or mapping of these, "
        f"which config.json can record; found {value!r}"
    )


_SCALARS: Mapping[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a number"),
    str: (str, "a string"),
}


def _converted_scalar(value: Any, kind: type, name: str) -> Any:
    accepted, expected_type = _SCALARS[kind]
    is_bool = isinstance(value, bool)
    if not isinstance(value, accepted) or (is_bool and kind is not bool):
        raise InputError(f"{name} must be {expected_type}; found {value!r}")
    if kind is float and math.isinf(value):
        raise InputError(f"{name} must be finite; found {value!r}")
    return kind(value)


def _check_range(value: Any, bounds: Mapping[str, float], name: str) -> None:
    for entry in value if isinstance(value, tuple) else (value,):
        holds = {
            "at least": lambda bound, x=entry: x >= bound,
            "above": lambda bound, x=entry: x > bound,
            "at most": lambda bound, x=entry: x <= bound,
            "below": lambda bound, x=entry: x < bound,
        }
        if entry is not None and not all(holds[relation](b) for relation, b in bounds.items()):
            expected = " and ".join(f"{r} {_plain(bound)}" for r, bound in bounds.items())
            raise InputError(f"{name} must be {expected}; found {value!r}")


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def flat_fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every field in nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_expression(expression: str, field: str) -> None:
    """Checks that the text is a regular expression.

    Raises:
      InputError: names the field, the text and the error.
    """
    try:
        re.compile(expression)
    except re.error as error:
        raise InputError(
            f"{field} must have regular expressions; found {expression!r}: {error}"
        ) from error
