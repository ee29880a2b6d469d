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
    if isinstance(recorded, dict) and isinstance(current, dict):
        fields = sorted(recorded.keys() | current.keys())
        return [
            line
            for field in fields
            for line in config_differences(
                recorded.get(field), current.get(field), f"{name}.{field}"
            )
        ]
    return [] if recorded == current else [f"{name}: the folder's {recorded!r}, now {current!r}"]
