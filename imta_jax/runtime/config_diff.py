"""Configs as a folder keeps them, and in what two of them differ."""

from collections.abc import Mapping
from typing import Any

# Parts of a config that change no result beyond rounding, and may change when a run goes on: the
# machine that it goes on with may have fewer devices.
FREE_PARTS = ("log", "checkpoint", "mesh")


def plain(config: Any) -> Any:
    """A config as JSON holds it: mappings become dicts, tuples become lists."""
    if isinstance(config, Mapping):
        return {name: plain(config[name]) for name in config}
    return [plain(entry) for entry in config] if isinstance(config, tuple | list) else config


def different_fields(theirs: Any, ours: Any, name: str = "config") -> list[str]:
    """One line per field in which two plain configs differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        fields = sorted(theirs.keys() | ours.keys())
        return [
            line
            for field in fields
            for line in different_fields(theirs.get(field), ours.get(field), f"{name}.{field}")
        ]
    return [] if theirs == ours else [f"{name}: the folder's {theirs!r}, now {ours!r}"]
