"""The page of exit codes lists every exception that users get, and the code of each command."""

import errno
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import imta_jax
from imta_jax import errors
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.runtime import command_line, preemption

PAGE = (Path(__file__).parents[2] / "docs/reference/exit_codes.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+Error)` \| `(\w+)`", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def classes():
    """All classes of the package that derive from UserError, by name."""
    for module in pkgutil.walk_packages(imta_jax.__path__, "imta_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    actual, queue = {}, [errors.UserError]
    while queue:
        for kind in queue.pop().__subclasses__():
            if kind.__module__.startswith("imta_jax."):
                actual[kind.__name__] = kind
                queue.append(kind)
    return actual


def test_the_page_lists_every_exception_with_its_base(classes):
    assert set(ROWS) == set(classes)
    for name, base in ROWS.items():
        assert base in {parent.__name__ for parent in classes[name].__mro__}


@pytest.mark.parametrize("name", ROWS)
def test_each_exception_ends_a_run_with_code_1_and_one_line(name, classes, monkeypatch, capsys):
    class Exited(Exception):
        pass

    def end(code):
        raise Exited(code)

    monkeypatch.setattr(command_line.os, "_exit", end)
    kind = classes[name]
    if kind is RefusedImageError:
        error = kind(Refusal.TRUNCATED)
    elif issubclass(kind, OSError):
        error = kind(errno.EIO, "runs/a: damaged; restore it")
    else:
        error = kind("runs/a: damaged; restore it")
    with pytest.raises((SystemExit, Exited)) as raised:
        command_line.exit_with_error(error, show_traceback=False)
    assert raised.value.args == (1,)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith(f"error: {error}") and len(others) == 1


def test_the_page_has_the_codes_of_signals():
    codes = set(map(int, re.findall(r"^\|[^|]*\| (\d+) \|", PAGE, re.MULTILINE)))
    assert codes == {0, 1, 2, preemption.EXIT_CODE, preemption.FORCED_EXIT_CODE}


def test_the_page_names_every_command():
    commands = {
        module.name.removesuffix(".__main__")
        for module in pkgutil.walk_packages(imta_jax.__path__, "imta_jax.")
        if module.name.endswith(".__main__")
    }
    former = "imta_jax.report"
    assert [name for name in commands - {former} if f"{name}`" not in PAGE] == []
