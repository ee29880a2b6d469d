"""The phases of the tiny network, each with one compiled step for all tests of training."""

import jax
import pytest
import tiny_run

from imta_jax.distributed import data_mesh


@pytest.fixture(scope="session")
def mesh():
    return data_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def phase_one(mesh):
    return tiny_run.make_phase("phase_one", mesh)


@pytest.fixture(scope="session")
def paper_phase_two(mesh):
    sweep = {"phase_two__alpha": 0.4, "phase_two__temperature": 2.0}  # Not given in the paper.
    return tiny_run.make_phase("phase_two", mesh, **sweep)


@pytest.fixture(scope="session")
def published_phase_two(mesh):
    return tiny_run.make_phase("phase_two", mesh, "published")
