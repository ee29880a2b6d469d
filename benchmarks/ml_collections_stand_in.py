"""What the benchmarks use of ml-collections, for GPU machines without that package.

Parsing of command lines is not included.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any


class ConfigDict(dict):
    """A mapping whose fields are attributes; it is never locked."""

    def __init__(self, values: Any = ()):
        super().__init__()
        self.update(values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def update(self, values: Any = (), **fields: Any) -> None:
        """Sets fields; mappings become `ConfigDict`s."""
        for name, value in {**dict(values), **fields}.items():
            nested = isinstance(value, dict) and not isinstance(value, ConfigDict)
            self[name] = ConfigDict(value) if nested else value

    def lock(self) -> None:
        """Does nothing."""

    unlock = lock


def install_if_missing() -> None:
    """Makes `import ml_collections` work where the package is not installed."""
    if importlib.util.find_spec("ml_collections") is None:
        install()


def install() -> None:
    """Replaces `ml_collections` in this process."""
    package, config_dict = ModuleType("ml_collections"), ModuleType("ml_collections.config_dict")
    contents: Any = {"ConfigDict": ConfigDict, "placeholder": lambda kind: None}
    config_dict.__dict__.update(contents)
    package.__dict__.update(contents, config_dict=config_dict, config_flags=None)
    sys.modules["ml_collections"] = package
    sys.modules["ml_collections.config_dict"] = config_dict
