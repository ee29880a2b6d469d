"""The executable cache: same results, and never the executable of another program."""

import functools
import json
import logging
import os
import pickle
import subprocess
import zlib
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from imta_jax.distributed import data_mesh, replicated
from imta_jax.runtime import executable_cache
from imta_jax.runtime.executable_cache import CachedExecutable
from imta_jax.training import executable_label


@pytest.fixture
def cache(tmp_path):
    """The cache folder; prefetched executables of other tests are dropped."""
    with tiny_run.compiled_once(tmp_path / "cache"):
        executable_cache._prefetched.clear()
        yield tmp_path / "cache" / "steps"
        executable_cache._prefetched.clear()


def make_step(table: np.ndarray, mesh):
    """A step with a donated state and a constant."""
    whole = replicated(mesh)
    return jax.jit(
        lambda state, x: (state + x * jnp.asarray(table), state.sum()),
        donate_argnums=0,
        in_shardings=(whole, whole),
        out_shardings=whole,
    )


def arguments(mesh):
    generator = np.random.default_rng(0)
    draw = [generator.normal(size=2048).astype(np.float32) for _ in range(2)]
    return [jax.device_put(x, replicated(mesh)) for x in draw]


def settle():
    """Waits for background reads and writes."""
    executable_cache._background().submit(int).result()


def launch(table: np.ndarray, mesh, label: str = "label"):
    """Results of a first call as in a new process, whether it donated and whether it compiled."""
    jax.clear_caches()  # As in a new process.
    before = len(compilations())
    step = CachedExecutable(make_step(table, mesh), label, mesh)
    given = arguments(mesh)
    found = step(*given)
    settle()
    return jax.device_get(found), given[0].is_deleted(), len(compilations()) > before


@functools.cache
def compilations() -> list[str]:
    """A list that grows with every compilation from now on."""
    found, compile_one = [], jax.stages.Lowered.compile

    def compile_and_count(lowered, *rest, **more):
        found.append("")
        return compile_one(lowered, *rest, **more)

    jax.stages.Lowered.compile = compile_and_count
    return found


TABLE = np.random.default_rng(1).normal(size=2048).astype(np.float32)


def stored(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.step")}


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_second_launch_reads_the_executable_with_the_same_results(cache, devices):
    mesh = data_mesh(jax.devices()[-devices:])
    first, donated, compiled = launch(TABLE, mesh)
    assert compiled and donated and len(stored(cache)) == 1
    second, donated, compiled = launch(TABLE, mesh)
    assert not compiled and donated and len(stored(cache)) == 1
    chex.assert_trees_all_equal(second, first)
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(second[0], state + x * TABLE, rtol=1e-6)


def test_a_loaded_executable_takes_its_own_results(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    step, (state, x) = CachedExecutable(make_step(TABLE, mesh), "label", mesh), arguments(mesh)
    expected, seen = np.asarray(state), np.asarray(x)
    for _ in range(3):
        state, _ = step(state, x)
        expected = expected + seen * TABLE
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)


def test_another_program_of_the_same_label_is_not_run(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    changed = TABLE.copy()
    changed[1234] += 1  # One number of a constant.
    found, _, compiled = launch(changed, mesh)
    state, x = jax.device_get(arguments(mesh))
    assert compiled and len(stored(cache)) == 2
    np.testing.assert_allclose(found[0], state + x * changed, rtol=1e-6)
    # The label now points to the changed program, but the first is found by its key.
    found, _, compiled = launch(TABLE, mesh)
    assert not compiled
    np.testing.assert_allclose(found[0], state + x * TABLE, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_dump_to="),
        lambda patch: patch.setattr(executable_cache, "_cpu_features", lambda: ("another",)),
        lambda patch: patch.setattr(jax, "__version__", "0.0.1"),
        lambda patch: jax.config.update("jax_default_matmul_precision", "highest"),
    ],
    ids=["flags", "cpu", "version", "config"],
)
def test_the_key_depends_on_flags_cpu_version_and_config(cache, change, monkeypatch):
    mesh, whole = data_mesh(), arguments(data_mesh())
    lowered = make_step(TABLE, mesh).lower(*whole)
    key = executable_cache._program_key(lowered, [0])
    assert key == executable_cache._program_key(make_step(TABLE, mesh).lower(*whole), [0])
    try:
        change(monkeypatch)
        assert executable_cache._program_key(lowered, [0]) != key
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert executable_cache._program_key(lowered, [1]) != key


@pytest.mark.parametrize("damage", [b"", b"not an executable", None])
def test_a_damaged_executable_is_compiled_again_and_replaced(cache, damage, caplog):
    mesh = data_mesh()
    first, *_ = launch(TABLE, mesh)
    (path,) = cache.glob("*.step")
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with caplog.at_level(logging.INFO, "imta_jax"):
        second, *_ = launch(TABLE, mesh)
    chex.assert_trees_all_equal(second, first)
    assert f"{path} cannot be read" in caplog.text
    third, _, compiled = launch(TABLE, mesh)
    chex.assert_trees_all_equal(third, first)
    assert not compiled


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00\x80", b"/", b"x" * 5000])
def test_a_damaged_last_key_is_replaced(cache, damage):
    mesh = data_mesh()
    first, *_ = launch(TABLE, mesh)
    (path,) = cache.glob("*.last")
    content = path.read_bytes()
    path.write_bytes(damage)
    second, _, compiled = launch(TABLE, mesh)
    chex.assert_trees_all_equal(second, first)
    assert not compiled and path.read_bytes() == content


class Renamed(NamedTuple):
    x: jax.Array


def test_other_argument_pytrees_are_compiled_again(cache):
    """The same program with other pytrees, for example after a layer was renamed."""
    mesh = data_mesh()
    _, x = arguments(mesh)

    def run(given, value_of):
        jax.clear_caches()
        before = len(compilations())
        step = jax.jit(lambda given: {"y": value_of(given) * jnp.asarray(TABLE)})
        found = CachedExecutable(step, "label", mesh)(given)
        settle()
        np.testing.assert_allclose(found["y"], x * TABLE, rtol=1e-6)
        return len(compilations()) > before

    assert run({"a": x}, lambda given: given["a"])
    assert run({"b": x}, lambda given: given["b"])
    assert not run({"b": x}, lambda given: given["b"])
    assert run(Renamed(x), lambda given: given.x)
    assert not run(Renamed(x), lambda given: given.x)


class Versioned:
    """Metadata of a pytree whose older instances lack an attribute."""

    def __init__(self):
        self.new_name = 1

    def __eq__(self, other):
        return self.new_name == other.new_name

    def __hash__(self):
        return 0


def test_an_executable_of_an_older_version_is_compiled_again(cache, monkeypatch):
    mesh = data_mesh()
    _, x = arguments(mesh)
    jax.tree_util.register_pytree_node(
        Tagged, lambda tagged: ((tagged.x,), tagged.tag), lambda tag, x: Tagged(x[0], tag)
    )

    def run():
        jax.clear_caches()
        before = len(compilations())
        step = jax.jit(lambda given: given.x * jnp.asarray(TABLE))
        found = CachedExecutable(step, "label", mesh)(Tagged(x, Versioned()))
        settle()
        np.testing.assert_allclose(found, x * TABLE, rtol=1e-6)
        return len(compilations()) > before

    assert run() and not run()
    monkeypatch.setattr(Versioned, "__setstate__", lambda self, state: None, raising=False)
    assert run()


class Tagged:
    def __init__(self, x, tag):
        self.x, self.tag = x, tag


def test_a_step_in_jax_s_own_cache_is_cached_too(cache):
    mesh = data_mesh()
    make_step(TABLE, mesh)(*arguments(mesh))  # Compiled and cached by JAX only.
    found, _, compiled = launch(TABLE, mesh)
    assert compiled and len(stored(cache)) == 1
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(found[0], state + x * TABLE, rtol=1e-6)


def test_jax_still_caches_other_programs(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    before = set(cache.parent.glob("*-cache"))
    jax.jit(lambda x: (x * 3 + jnp.asarray(TABLE)).sum())(arguments(mesh)[0]).block_until_ready()
    assert set(cache.parent.glob("*-cache")) > before


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
    first, *_ = launch(TABLE, mesh)
    (step,) = cache.glob("*.step")
    assert oct(step.stat().st_mode)[-3:] == "600" and oct(cache.stat().st_mode)[-3:] == "700"
    step.write_bytes(zlib.compress(pickle.dumps(Planted(ran))))
    (changed,) = cache.glob(name) if name else [cache]
    changed.chmod(mode)
    if name == "*.last":
        step.unlink()  # What the key names is not read either.
    second, _, compiled = launch(TABLE, mesh)
    chex.assert_trees_all_equal(second, first)
    assert compiled and not ran.exists()
    assert str(changed) in caplog.text and f"mode {mode:o}" in caplog.text
    assert not launch(TABLE, mesh)[2]  # Written again, with the expected modes.


def test_a_folder_of_another_user_is_neither_read_nor_written(cache, monkeypatch, caplog):
    mesh = data_mesh()
    launch(TABLE, mesh)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with caplog.at_level(logging.INFO, "imta_jax"):
        assert launch(TABLE, mesh)[2]
    assert "expected 12345" in caplog.text and "is not cached in" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_a_link_to_a_file_is_not_read(cache, tmp_path):
    mesh = data_mesh()
    launch(TABLE, mesh)
    (step,) = cache.glob("*.step")
    step.rename(tmp_path / "moved")
    step.symlink_to(tmp_path / "moved")
    assert launch(TABLE, mesh)[2]


def test_without_a_writable_folder_the_step_still_runs(cache, tmp_path, caplog):
    mesh = data_mesh()
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file")
    with caplog.at_level(logging.INFO, "imta_jax"):
        found, donated, compiled = launch(TABLE, mesh)
    assert compiled and donated and "is not cached in" in caplog.text
    assert not list(tmp_path.rglob("*.partial"))
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(found[0], state + x * TABLE, rtol=1e-6)


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


def test_the_label_depends_on_the_sections_that_determine_the_step():
    def label(phase: str = "phase_one", **changes) -> str:
        return executable_label(tiny_run.run_config("images.npz", **changes), phase)

    assert label() == label(seed=5) == label(log__check_every_steps=7)
    others = [
        label("phase_two"),
        label(phase_one__batch_size=32),
        label(model__growth_rate=6),
        label(data__source="others.npz"),
        label(mesh__parameter_shards=2),
    ]
    assert len({label(), *others}) == 6


def test_launches_of_one_config_share_executables_and_results(tmp_path):
    source, cache = tiny_run.write_dataset(tmp_path / "images.npz"), tmp_path / "cache"
    rows, steps = [], []
    for run in ("first", "second"):
        command = tiny_run.launch_command(source, tmp_path / run, cache)
        subprocess.run(**command, check=True, capture_output=True)
        steps.append({path: path.stat().st_mtime_ns for path in (cache / "steps").glob("*.step")})
        for phase in ("phase_one", "phase_two"):
            lines = (tmp_path / run / phase / "metrics.jsonl").read_text().splitlines()
            rows.append([json.loads(line)["loss_per_exit"] for line in lines])
    assert len(steps[0]) == 2 and steps[0] == steps[1]
    assert rows[:2] == rows[2:]
