"""Executables that were compiled ahead of time, on the devices of this host."""

import json
import logging

import cached_steps
import jax
import numpy as np
import pytest

from imta_jax.distributed import data_mesh
from imta_jax.runtime.executable_cache import CachedExecutable
from imta_jax.runtime.parallel_compilation import without_jax_cache
from imta_jax.runtime.saved_executable import load_executable, save_executable

MESH_SIZE = 2


@pytest.fixture(scope="module")
def mesh():
    return data_mesh(jax.devices()[:MESH_SIZE])


@pytest.fixture
def saved(mesh, tmp_path):
    """The path of a saved step, and the step lowered again."""
    lowered = cached_steps.make_step(cached_steps.TABLE, mesh).lower(*cached_steps.arguments(mesh))
    path = tmp_path / "compiled" / "phase_one"
    with without_jax_cache():
        compiled = lowered.compile()
    save_executable(path, lowered, compiled, list(mesh.devices.flat))
    return path, lowered


def load(saved, mesh):
    path, lowered = saved
    return load_executable(path, lowered, list(mesh.devices.flat))


def test_a_saved_executable_computes_the_step(saved, mesh):
    arguments = cached_steps.arguments(mesh)
    expected = cached_steps.make_step(cached_steps.TABLE, mesh)(*cached_steps.arguments(mesh))
    actual = load(saved, mesh)(*arguments)
    np.testing.assert_array_equal(actual[0], expected[0])
    assert arguments[0].is_deleted(), "donated"


def test_a_run_uses_a_saved_executable_and_compiles_nothing(saved, mesh):
    step, arguments = cached_steps.make_step(cached_steps.TABLE, mesh), cached_steps.arguments(mesh)
    cached = CachedExecutable(step, "label", mesh, saved[0])
    _, compiled = cached_steps.call_in_new_process(lambda: cached(*arguments))
    assert not compiled


def test_a_missing_file_is_not_an_error(saved, mesh):
    path, lowered = saved
    assert load_executable(path.with_name("phase_two"), lowered, list(mesh.devices.flat)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("program", "0"),
        ("jax", "0.1"),
        ("jaxlib", "0.1"),
        ("device_kind", "TPU v5 lite"),
        ("device_count", 8),
        ("libtpu", "0.1"),
    ],
)
def test_an_executable_of_other_versions_devices_or_programs_is_not_used(
    name, value, saved, mesh, caplog
):
    path = saved[0].with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with caplog.at_level(logging.WARNING, "imta_jax"):
        assert load(saved, mesh) is None
    assert f"{name} is" in caplog.text


def test_a_damaged_executable_is_not_used(saved, mesh, caplog):
    path = saved[0].with_suffix(".executable")
    path.write_bytes(path.read_bytes()[:-100])
    assert load(saved, mesh) is None
    assert "phase_one.executable" in caplog.text


def test_a_file_that_others_can_write_is_not_used(saved, mesh, caplog):
    saved[0].with_suffix(".executable").chmod(0o666)
    assert load(saved, mesh) is None
    assert "mode 666" in caplog.text
