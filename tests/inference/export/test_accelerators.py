"""The stages of an export compile for chips that are not attached."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imta_jax.errors import MissingPackageError
from imta_jax.planning.devices import COMPILER_ENVIRONMENT, check_compiler
from imta_jax.planning.topologies import parse_topology

pytestmark = pytest.mark.accelerator
TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("topology", ["v5e:2x2", "h100:1"])
def test_exported_stages_compile_and_run_on_the_chip_alone(topology, exported_folder):
    try:
        check_compiler(parse_topology(topology))
    except MissingPackageError as error:
        pytest.skip(str(error))
    script = str(TESTS / "compile_stages.py")
    path = f"{TESTS.parent}:{TESTS}"
    actual = subprocess.run(
        [sys.executable, script, str(exported_folder), topology],
        env={"PATH": "", "PYTHONPATH": path, **COMPILER_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert actual.returncode == 0, actual.stderr[-2000:]
    programs = [json.loads(line) for line in actual.stdout.splitlines()]
    assert len(programs) >= 3
    assert [program for program in programs if program["faults"]] == []
