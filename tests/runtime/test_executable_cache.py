"""Compiled steps read back by a later launch: the same numbers, never those of another program."""

import functools
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

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
    """A folder for compiled programs; what was read from an earlier one is forgotten."""
    with tiny_run.compiled_once(tmp_path / "cache"):
        executable_cache._prefetched.clear()
        yield tmp_path / "cache" / "steps"
        executable_cache._prefetched.clear()


def make_step(table: np.ndarray, mesh):
    """A step on a donated state, with a constant in it."""
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
    """Waits for what is read and written in the background."""
    executable_cache._background().submit(int).result()


def launch(table: np.ndarray, mesh, label: str = "label"):
    """A process's first call, as far as this module knows, and whether it compiled."""
    jax.clear_caches()  # what a new process would not know
    before = len(compilations())
    step = CachedExecutable(make_step(table, mesh), label, mesh)
    given = arguments(mesh)
    found = step(*given)
    settle()
    return jax.device_get(found), given[0].is_deleted(), len(compilations()) > before


@functools.cache
def compilations() -> list[str]:
    """Grows with every step that is compiled from now on."""
    found, compile_one = [], jax.stages.Lowered.compile

    def compile_and_tell(lowered, *rest, **more):
        found.append("")
        return compile_one(lowered, *rest, **more)

    jax.stages.Lowered.compile = compile_and_tell
    return found


TABLE = np.random.default_rng(1).normal(size=2048).astype(np.float32)


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.step")}


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_second_launch_reads_the_step_and_computes_the_same(cache, devices):
    mesh = data_mesh(jax.devices()[-devices:])
    first, donated, compiled = launch(TABLE, mesh)
    assert compiled and donated and len(kept(cache)) == 1
    second, donated, compiled = launch(TABLE, mesh)
    assert not compiled and donated and len(kept(cache)) == 1
    tiny_run.assert_same(second, first)
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(second[0], state + x * TABLE, rtol=1e-6)


def test_a_step_that_was_read_goes_on_with_what_it_returned(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    step, (state, x) = CachedExecutable(make_step(TABLE, mesh), "label", mesh), arguments(mesh)
    expected, seen = np.asarray(state), np.asarray(x)
    for _ in range(3):
        state, _ = step(state, x)
        expected = expected + seen * TABLE
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)


def test_another_program_under_the_same_label_is_never_run(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    changed = TABLE.copy()
    changed[1234] += 1  # one number in the middle of a constant
    found, _, compiled = launch(changed, mesh)
    state, x = jax.device_get(arguments(mesh))
    assert compiled and len(kept(cache)) == 2
    np.testing.assert_allclose(found[0], state + x * changed, rtol=1e-6)
    # And back: the label now names the other, but the first is still known by what it is.
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
    ids=["flags", "processor", "version", "config"],
)
def test_surroundings_that_may_compile_otherwise_have_steps_of_their_own(
    cache, change, monkeypatch
):
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


@pytest.mark.parametrize("damage", [b"", b"not a step", None])
def test_a_damaged_step_is_compiled_anew_and_replaced(cache, damage, caplog):
    mesh = data_mesh()
    first, *_ = launch(TABLE, mesh)
    (path,) = cache.glob("*.step")
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with caplog.at_level(logging.INFO, "imta_jax"):
        second, *_ = launch(TABLE, mesh)
    tiny_run.assert_same(second, first)
    assert f"{path} cannot be read" in caplog.text
    third, _, compiled = launch(TABLE, mesh)
    tiny_run.assert_same(third, first)
    assert not compiled


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00\x80", b"/", b"x" * 5000])
def test_a_damaged_note_of_what_was_last_used_is_replaced(cache, damage):
    mesh = data_mesh()
    first, *_ = launch(TABLE, mesh)
    (path,) = cache.glob("*.last")
    content = path.read_bytes()
    path.write_bytes(damage)
    second, _, compiled = launch(TABLE, mesh)
    tiny_run.assert_same(second, first)
    assert not compiled and path.read_bytes() == content


class Renamed(NamedTuple):
    x: jax.Array


def test_a_program_whose_arguments_are_named_otherwise_is_compiled_anew(cache):
    """As after an upgrade of Flax or with a renamed layer: the same operations, another tree."""
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


def test_a_step_that_jax_has_in_its_own_cache_is_kept_all_the_same(cache):
    mesh = data_mesh()
    make_step(TABLE, mesh)(*arguments(mesh))  # compiled, and kept by JAX alone
    found, _, compiled = launch(TABLE, mesh)
    assert compiled and len(kept(cache)) == 1
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(found[0], state + x * TABLE, rtol=1e-6)


def test_other_programs_go_on_to_be_kept_by_jax(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    before = set(cache.parent.glob("*-cache"))
    jax.jit(lambda x: (x * 3 + jnp.asarray(TABLE)).sum())(arguments(mesh)[0]).block_until_ready()
    assert set(cache.parent.glob("*-cache")) > before


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(cache, tmp_path, caplog):
    mesh = data_mesh()
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("no folder")
    with caplog.at_level(logging.INFO, "imta_jax"):
        found, donated, compiled = launch(TABLE, mesh)
    assert compiled and donated and "is not cached in" in caplog.text
    assert not list(tmp_path.rglob("*.partial"))
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(found[0], state + x * TABLE, rtol=1e-6)


@pytest.mark.parametrize("folder", [None, "gs://bucket/programs"])
def test_without_a_local_folder_steps_are_only_compiled(folder):
    mesh, before = data_mesh(), jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", folder)
        step = CachedExecutable(make_step(TABLE, mesh), "label", mesh)
        assert not executable_cache._prefetched
        if folder is None:  # a bucket would be asked
            state, x = arguments(mesh)
            expected = np.asarray(state) + np.asarray(x) * TABLE
            np.testing.assert_allclose(step(state, x)[0], expected, rtol=1e-6)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_label_is_of_what_the_program_is_made_of():
    def label(phase: str = "phase_one", **changes) -> str:
        return executable_label(tiny_run.tiny_config("images.npz", **changes).to_dict(), phase)

    assert label() == label(seed=5) == label(log__check_every_steps=7)
    others = [
        label("phase_two"),
        label(phase_one__batch_size=32),
        label(model__growth_rate=6),
        label(data__source="others.npz"),
        label(mesh__parameter_shards=2),
    ]
    assert len({label(), *others}) == 6


def test_launches_of_one_config_share_steps_and_end_alike(tmp_path):
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
