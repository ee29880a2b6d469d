"""Config fields: descriptions from `configs/`, valid values from `imta_jax/config.py`."""

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import imta_jax.training  # noqa: F401  registers the components whose names are listed
from imta_jax.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
# Which part of a config each function of these files fills; both phases share some functions.
_FILES = ("common.py", "phases.py")
_PARTS = {
    "network": ("model",),
    "data": ("data",),
    "_phase": ("phase_one", "phase_two"),
    "_augmentation": ("phase_one", "phase_two"),
    "_schedule": ("phase_one", "phase_two"),
    "_optimizer": ("phase_one", "phase_two"),
    "phase_one": ("phase_one",),
    "phase_two": ("phase_two",),
    "evaluation": ("evaluation",),
    "assemble": ("",),
}
_FUNCTION = re.compile(r"def (\w+)\(")
_ASSIGNMENT = re.compile(r"\s+\w+\.([\w.]+) = ")
_COMMENT = re.compile(r"\s+# ?(.*)")


class Field(NamedTuple):
    """A config field.

    Attributes:
      path: dotted path, for example `phase_one.batch_size`.
      default: its value in `configs/cifar10.py`; None where it is not set.
      description: the comment above it.
      valid: its type, range or choices.
    """

    path: str
    default: Any
    description: str
    valid: str


def config_fields() -> list[Field]:
    """Every field of a run's config, in the order of the config."""
    descriptions = described_fields()
    values = flat(_config("cifar10"))
    return [
        Field(path, value, descriptions.get(path, ""), valid_values(path))
        for path, value in values.items()
    ]


def described_fields() -> dict[str, str]:
    """The comment above each field in `_FILES`, by the field's path."""
    return {path: text for file in _FILES for path, text in _described(ROOT / "configs" / file)}


def declared_fields(kind: type = RunConfig, prefix: str = "") -> set[str]:
    """Paths of the fields that the dataclasses of `imta_jax/config.py` declare."""
    paths = set()
    for name, inner in get_type_hints(kind).items():
        if name in {field.name for field in dataclasses.fields(kind)}:
            nested = dataclasses.is_dataclass(inner)
            paths |= declared_fields(inner, f"{prefix}{name}.") if nested else {prefix + name}
    return paths


def valid_values(path: str) -> str:
    """Type and range of a field, or its choices, e.g. "int, at least 1"."""
    kind, bounds, registry = RunConfig, {}, None
    for name in path.split("."):
        (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
        kind, bounds = get_type_hints(kind)[name], field.metadata.get("bounds", {})
        registry = field.metadata.get("registry")
    if registry is not None:
        names = ", ".join(f"`{name!r}`" for name in registry if registry.is_built_in(name))
        return f"{names}, or one of your own"
    if get_origin(kind) is dict:
        return "options with any names"
    options = [option for option in get_args(kind) if option is not NoneType]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{option!r}`" for option in options)
    if NoneType in get_args(kind):
        kind = options[0]
    name = str(kind) if get_origin(kind) else kind.__name__
    return ", ".join(
        [f"`{name}`", *(f"{relation} {bound:g}" for relation, bound in bounds.items())]
    )


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as one mapping from dotted paths to values."""
    values = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        is_section = hasattr(value, "items") and len(value) > 0  # not options without a default
        values |= flat(value, f"{path}.") if is_section else {path: value}
    return values


def differences(name: str, preset: str | None = None) -> dict[str, Any]:
    """Fields in which `configs/NAME.py`, or a preset of it, differs from its reference.

    A preset is compared with the same file's default preset, a file with `configs/cifar10.py`.
    """
    config = flat(_config(name, preset))
    reference = flat(_config(name) if preset else _config("cifar10"))
    return {path: value for path, value in config.items() if value != reference[path]}


def _config(name: str, preset: str | None = None) -> Any:
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(*([preset] if preset else []))


def _described(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of a field's path and the comment above it."""
    parts, comment = (), []
    for line in path.read_text().splitlines():
        if function := _FUNCTION.match(line):
            parts = _PARTS.get(function[1], ())
        if text := _COMMENT.fullmatch(line):
            comment.append(text[1])
            continue
        field = _ASSIGNMENT.match(line)
        if field and comment:
            for part in parts:
                yield ".".join(filter(None, (part, field[1]))), " ".join(comment)
        comment = []
