"""Programs that can import only some packages, as in an environment without the others."""

from collections.abc import Iterable

_PROGRAM = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class OnlyAllowed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        allowed = top[0] == "_" or top in PACKAGES | set(sys.stdlib_module_names)
        return super().find_spec(name, path, target) if allowed else None

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, OnlyAllowed]
"""


def import_only(packages: Iterable[str]) -> str:
    """Python code after which only the standard library and `packages` can be imported."""
    return _PROGRAM.replace("PACKAGES", repr(set(packages)))
