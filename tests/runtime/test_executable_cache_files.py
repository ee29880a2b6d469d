"""Files of the executable cache: damage, permissions and missing folders."""

import logging
import os
import pickle
import zlib
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from cached_steps import TABLE, arguments, launch, make_step

from imta_jax.distributed import data_mesh
from imta_jax.runtime import executable_cache
from imta_jax.runtime.executable_cache import CachedExecutable


@pytest.mark.parametrize("damage", [b"", b"not an executable", None])
def test_a_damaged_executable_is_compiled_again_and_replaced(cache, damage, caplog):
    mesh = data_mesh()
    first = launch(TABLE, mesh)
    (path,) = cache.glob("*.step")
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with caplog.at_level(logging.INFO, "imta_jax"):
        second = launch(TABLE, mesh)
    chex.assert_trees_all_equal(second.results, first.results)
    assert f"{path} cannot be read" in caplog.text
    third = launch(TABLE, mesh)
    chex.assert_trees_all_equal(third.results, first.results)
    assert not third.compiled


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00\x80", b"/", b"x" * 5000])
def test_a_damaged_last_key_is_replaced(cache, damage):
    mesh = data_mesh()
    first = launch(TABLE, mesh)
    (path,) = cache.glob("*.last")
    content = path.read_bytes()
    path.write_bytes(damage)
    second = launch(TABLE, mesh)
    chex.assert_trees_all_equal(second.results, first.results)
    assert not second.compiled and path.read_bytes() == content


class Planted:
    """An object that runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "mode"), [("*.step", 0o644), ("*.step", 0o620), ("*.last", 0o666), ("", 0o755)]
)
def test_files_that_others_may_have_written_are_ignored(name, mode, cache, tmp_path, caplog):
    mesh, ran = data_mesh(), tmp_path / "ran"
    first = launch(TABLE, mesh)
    (step,) = cache.glob("*.step")
    assert oct(step.stat().st_mode)[-3:] == "600" and oct(cache.stat().st_mode)[-3:] == "700"
    step.write_bytes(zlib.compress(pickle.dumps(Planted(ran))))
    (changed,) = cache.glob(name) if name else [cache]
    changed.chmod(mode)
    if name == "*.last":
        step.unlink()  # The executable of the key is not read either.
    second = launch(TABLE, mesh)
    chex.assert_trees_all_equal(second.results, first.results)
    assert second.compiled and not ran.exists()
    assert str(changed) in caplog.text and f"mode {mode:o}" in caplog.text
    assert not launch(TABLE, mesh).compiled  # Written again, with the correct modes.


def test_a_folder_of_another_user_is_neither_read_nor_written(cache, monkeypatch, caplog):
    mesh = data_mesh()
    launch(TABLE, mesh)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with caplog.at_level(logging.INFO, "imta_jax"):
        assert launch(TABLE, mesh).compiled
    assert "12345" in caplog.text and str(cache) in caplog.text
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_a_link_to_a_file_is_not_read(cache, tmp_path):
    mesh = data_mesh()
    launch(TABLE, mesh)
    (step,) = cache.glob("*.step")
    step.rename(tmp_path / "moved")
    step.symlink_to(tmp_path / "moved")
    assert launch(TABLE, mesh).compiled


def test_without_a_writable_folder_the_step_still_runs(cache, tmp_path, caplog):
    mesh = data_mesh()
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file")
    with caplog.at_level(logging.INFO, "imta_jax"):
        first = launch(TABLE, mesh)
    assert first.compiled and first.donated and str(cache) in caplog.text
    assert not list(tmp_path.rglob("*.partial"))
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(first.results[0], state + x * TABLE, rtol=1e-6)


@pytest.mark.parametrize("folder", [None, "gs://bucket/programs"])
def test_without_a_local_folder_the_step_is_only_compiled(folder):
    mesh, before = data_mesh(), jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", folder)
        step = CachedExecutable(make_step(TABLE, mesh), "label", mesh)
        assert not executable_cache._prefetched
        if folder is None:  # JAX would access the bucket.
            state, x = arguments(mesh)
            expected = np.asarray(state) + np.asarray(x) * TABLE
            np.testing.assert_allclose(step(state, x)[0], expected, rtol=1e-6)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
