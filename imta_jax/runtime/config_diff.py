"""Comparison of a run's config with the `config.json` of its folder."""

from collections.abc import Mapping
from typing import Any

# Sections that do not change results beyond rounding. They may change when a run resumes: the new
# machine may have fewer devices.
IGNORED_SECTIONS = ("log", "checkpoint", "mesh")


def to_json_types(config: Any) -> Any:
    """A config as `json.loads` would return it: mappings are dicts and tuples are lists."""
    if isinstance(config, Mapping):
        return {name: to_json_types(config[name]) for name in config}
    if isinstance(config, tuple | list):
        return [to_json_types(entry) for entry in config]
    return config


def config_differences(recorded: Any, current: Any, name: str = "config") -> list[str]:
    """One line per field in which two configs of JSON types differ.

    Args:
      recorded: the config of the run's folder.
      current: the config of this launch.
      name: prefix of the field names.
    """
    return [
        f"{field}: the folder's {before!r}, now {now!r}"
        for field, before, now in differing_fields(recorded, current, name)
    ]


def differing_fields(first: Any, second: Any, name: str) -> list[tuple[str, Any, Any]]:
    """The fields in which two configs of JSON types differ: name and both values.

    A field that a config does not have is None.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return [
            difference
            for field in sorted(first.keys() | second.keys())
            for difference in differing_fields(
                first.get(field), second.get(field), f"{name}.{field}"
            )
        ]
    return [] if first == second else [(name, first, second)]
