"""An uninterrupted run to compare resumed runs with."""

import shutil

import jax
import pytest
import tiny_run
from resumed_runs import TRAIN

from imta_jax.data import load_dataset
from imta_jax.distributed import data_mesh
from imta_jax.training import phases


@pytest.fixture(scope="module", autouse=True)
def _one_device(compilation_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope="session")
def config(source):
    # Learned transfer and moving statistics have more state to restore.
    return tiny_run.run_config(source, "published")


@pytest.fixture(scope="session")
def dataset(config):
    return load_dataset(config.data)


@pytest.fixture(scope="module")
def finished(config, dataset, build_once):
    """The folder of an uninterrupted run. Tests must not change it."""

    def train_both(folder):
        for train in TRAIN.values():
            train(config, dataset, folder)

    return build_once("uninterrupted_run", train_both)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run that tests may damage."""
    return shutil.copytree(finished, tmp_path / "copy")
