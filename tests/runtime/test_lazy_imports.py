"""Names that packages import on first access."""

import subprocess
import sys

import pytest

from imta_jax import evaluation, inference


@pytest.mark.parametrize("package", [evaluation, inference], ids=["evaluation", "inference"])
def test_every_name_is_listed_and_can_be_imported(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith("imta_jax.")
    with pytest.raises(AttributeError, match=rf"{package.__name__}.*'missing'"):
        _ = package.missing


def test_listing_the_names_imports_nothing():
    program = (
        "import sys; from imta_jax import inference; found = dir(inference);"
        "assert 'AdaptiveStream' in found and '__doc__' in found, found;"
        "assert not [name for name in sys.modules if name.startswith('imta_jax.inference.')];"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_starting_a_run_imports_no_library_of_later_steps():
    later = ("matplotlib", "pandas", "scipy", "tensorflow")
    program = f"import sys, imta_jax.cli.run; sys.exit(str(set({later}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
