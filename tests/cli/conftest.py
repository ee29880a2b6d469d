"""A finished run of the tiny network for the tests of the command line."""

import json
import shutil

import pytest
import tiny_run

from imta_jax.cli.run import run


@pytest.fixture(scope="session")
def config(source):
    return tiny_run.tiny_config(source)


@pytest.fixture(scope="module")
def finished(config, build_once, compilation_cache):
    """The folder of a finished run. Tests must not change it."""
    folder = build_once("finished_run", lambda folder: run(config, folder / "new" / "finished"))
    return folder / "new" / "finished"


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished / "results.json").read_text())


@pytest.fixture
def trained(finished, tmp_path):
    """A folder with only the two trained phases."""
    for phase in ("phase_one", "phase_two"):
        shutil.copytree(finished / phase, tmp_path / "trained" / phase)
    return tmp_path / "trained"
