"""Adds the files of `configs/` to the wheel, as `imta_jax/shipped/configs`.

`--config=NAME` finds them there. An editable installation uses `configs/` itself.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CONFIGS = "configs"


class BuildWithConfigs(build_py):
    """Copies the config files next to the package's modules."""

    def run(self) -> None:
        """Builds the package, then copies the config files."""
        super().run()
        for source, target in self._copies():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files that `run` writes."""
        return super().get_outputs(include_bytecode) + [str(target) for _, target in self._copies()]

    def _copies(self) -> list[tuple[Path, Path]]:
        if self.editable_mode:
            return []
        target = Path(self.build_lib, "imta_jax", "shipped")
        files = sorted((ROOT / CONFIGS).rglob("*.py"))
        return [(file, target / file.relative_to(ROOT)) for file in files]


setup(cmdclass={"build_py": BuildWithConfigs})
