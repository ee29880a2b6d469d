"""The restart with huge pages: one restart, with the same arguments."""

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


def start(tunables: str | None) -> tuple[list, int]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: tunables} if tunables is not None else {}
    command = [sys.executable, "-c", PROGRAM, "--an=argument", "with space"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate()
    (line,) = output.splitlines()  # Printed once.
    return json.loads(line), process.pid


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's variable")
def test_the_restart_keeps_process_id_and_arguments_and_sets_the_variable() -> None:
    output, pid = start(None)
    assert output == [["--an=argument", "with space"], pid, SETTING]


def test_a_variable_of_the_user_is_not_changed() -> None:
    output, _ = start("glibc.malloc.check=0")
    assert output[2] == "glibc.malloc.check=0"


def test_other_systems_do_not_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv(VARIABLE, raising=False)
    restart_with_huge_pages()
    assert VARIABLE not in os.environ
