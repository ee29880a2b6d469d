"""A process that starts itself anew, with its arguments and once."""

import json
import os
import subprocess
import sys

import pytest

from imta_jax.runtime.huge_pages import SETTING, VARIABLE, restart_with_huge_pages

PROGRAM = """
import json, os, sys
from imta_jax.runtime.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(json.dumps([sys.argv[1:], os.getpid(), os.environ["GLIBC_TUNABLES"]]))
"""


def started(tunables: str | None) -> tuple[list, int]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: tunables} if tunables is not None else {}
    command = [sys.executable, "-c", PROGRAM, "--an=argument", "with space"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate()
    (line,) = said.splitlines()  # once
    return json.loads(line), process.pid


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's variable")
def test_same_process_and_arguments_with_the_variable() -> None:
    said, pid = started(None)
    assert said == [["--an=argument", "with space"], pid, SETTING]


def test_what_the_user_set_stays() -> None:
    said, _ = started("glibc.malloc.check=0")
    assert said[2] == "glibc.malloc.check=0"


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv(VARIABLE, raising=False)
    restart_with_huge_pages()
    assert VARIABLE not in os.environ
