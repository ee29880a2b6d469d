"""Command-line overrides of options with any names: `--config.model.options.width=32`.

A locked config rejects fields that it does not have. Options of components (the fields `options`
and `*_options`) have the names that the component chooses, and `sweep.fields` of a study those of
the swept fields.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict

_OVERRIDE = re.compile(r"--?config\.(sweep\.fields|(?:\w+\.)*\w*options)\.([\w.]+)(?:=|$)")


class ConfigParser(flags.ArgumentParser):
    """Parses a config file; options that the command line sets get a placeholder.

    Args:
      parser: the parser of `config_flags.DEFINE_config_file`.
    """

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, path: str) -> Any:
        """Loads and locks the config of a file."""
        config = self._parser.parse(path)
        if isinstance(config, ConfigDict):
            for parent, name in _overridden_options(sys.argv):
                _add_placeholder(config, parent.split("."), name.split("."))
        return config


def _overridden_options(argv: list[str]) -> Iterator[tuple[str, str]]:
    """(path of the options, name within them) of each override."""
    for argument in argv:
        if match := _OVERRIDE.match(argument):
            yield match[1], match[2]


def _add_placeholder(config: Any, parents: list[str], names: list[str]) -> None:
    """Adds a field without a type, so that an override of it is parsed as a literal."""
    options: Any = config
    for name in parents:
        if not isinstance(options, ConfigDict) or name not in options:
            return  # The override is reported as an unknown field.
        options = options[name]
    options.unlock()
    for name in names[:-1]:
        if name not in options:
            options[name] = ConfigDict()
        options = options[name]
    if names[-1] not in options:
        options[names[-1]] = config_dict.placeholder(object)
