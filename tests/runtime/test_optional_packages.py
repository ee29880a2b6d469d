"""Messages about optional packages, and the extras that install them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from limited_imports import import_only

from imta_jax.errors import MissingPackageError
from imta_jax.runtime import optional_packages
from imta_jax.runtime.command_line import plain_message
from imta_jax.runtime.interrupts import interrupts_reported
from imta_jax.runtime.lazy_imports import lazy_imports

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
# Where the name of a distribution is not that of its module.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "tensorflow_datasets": "tensorflow-datasets",
    "mlflow": "mlflow-skinny",
}


def distributions(requirements):
    return {
        re.split(r"[^\w-]", requirement.replace("imta_jax", "imta-jax"))[0]
        for requirement in requirements
    }


@pytest.mark.parametrize("extra", optional_packages._MODULES)
def test_extra_installs_its_modules(extra):
    installed = distributions(PROJECT["optional-dependencies"][extra])
    modules = optional_packages._MODULES[extra]
    assert {DISTRIBUTIONS.get(module, module) for module in modules} <= installed


def test_core_is_what_the_project_depends_on():
    names = {"absl": "absl-py", "ml_collections": "ml-collections"}
    core = {names.get(module, module) for module in optional_packages._CORE}
    assert core == distributions(PROJECT["dependencies"])


def test_a_missing_package_of_the_core_names_the_command():
    message = r"imta-jax models: error: .*flax.*pip install -e \. .*imta_jax"
    with pytest.raises(SystemExit, match=message), interrupts_reported("imta-jax models"):
        raise ModuleNotFoundError("No module named 'flax'", name="flax.nnx")
    with pytest.raises(ModuleNotFoundError), interrupts_reported("imta-jax models"):
        raise ModuleNotFoundError("No module named 'mine'", name="mine")


def test_a_command_without_a_package_of_the_core_prints_one_line():
    missing = plain_message(ModuleNotFoundError("No module named 'orbax'", name="orbax"))
    assert missing is not None and "orbax" in missing and "[train]" in missing
    assert plain_message(ModuleNotFoundError("No module named 'mine'", name="mine")) is None


@pytest.mark.parametrize("module", ["imta_jax.models", "imta_jax.inference"])
def test_modules_that_are_commands_name_a_missing_package(module):
    program = import_only({"imta_jax", "numpy", "scipy"}) + (
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "cifar_4_exits"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and module in line and "pip install" in line


def test_core_has_no_large_optional_package():
    large = {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "matplotlib", "pandas"}
    large |= {"pyarrow", "opencv-python-headless"}
    assert not large & distributions(PROJECT["dependencies"])


def test_missing_module_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r'a figure.*matplotlib.*"imta_jax\[report\]"'):
        optional_packages.require("report", "a figure")
    optional_packages.require("train", "training", "numpy")


def test_lazy_name_of_a_missing_module_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "elsewhere", None)
    get, _ = lazy_imports("package", {"resize": "cv2", "other": "elsewhere"})
    with pytest.raises(MissingPackageError, match=r'package\.resize.*cv2.*"imta_jax\[train\]"'):
        get("resize")
    with pytest.raises(ModuleNotFoundError, match="elsewhere"):
        get("other")
