"""The executable cache: same results, and never the executable of another program."""

import os
import pickle
from typing import NamedTuple

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from cached_steps import TABLE, arguments, call_in_new_process, launch, make_step, stored

from imta_jax.distributed import data_mesh
from imta_jax.runtime import executable_cache
from imta_jax.runtime.executable_cache import CachedExecutable
from imta_jax.runtime.prng_keys import pickle_generators_by_name


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_second_launch_reads_the_executable_with_the_same_results(cache, devices):
    mesh = data_mesh(jax.devices()[-devices:])
    first = launch(TABLE, mesh)
    assert first.compiled and first.donated and len(stored(cache)) == 1
    second = launch(TABLE, mesh)
    assert not second.compiled and second.donated and len(stored(cache)) == 1
    chex.assert_trees_all_equal(second.results, first.results)
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(second.results[0], state + x * TABLE, rtol=1e-6)


def test_a_loaded_executable_accepts_its_own_results_as_arguments(cache):
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
    second = launch(changed, mesh)
    state, x = jax.device_get(arguments(mesh))
    assert second.compiled and len(stored(cache)) == 2
    np.testing.assert_allclose(second.results[0], state + x * changed, rtol=1e-6)
    # The label now points to the changed program, but the first is found by its key.
    third = launch(TABLE, mesh)
    assert not third.compiled
    np.testing.assert_allclose(third.results[0], state + x * TABLE, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_dump_to="),
        lambda patch: patch.setattr(executable_cache, "cpu_features", lambda: ("another",)),
        lambda patch: patch.setattr(jax, "__version__", "0.0.1"),
        lambda patch: jax.config.update("jax_default_matmul_precision", "highest"),
    ],
    ids=["flags", "cpu", "version", "config"],
)
def test_the_key_depends_on_flags_cpu_version_and_config(cache, change, monkeypatch):
    mesh, step_arguments = data_mesh(), arguments(data_mesh())
    lowered = make_step(TABLE, mesh).lower(*step_arguments)
    key = executable_cache._program_key(lowered, [0])
    assert key == executable_cache._program_key(make_step(TABLE, mesh).lower(*step_arguments), [0])
    try:
        change(monkeypatch)
        assert executable_cache._program_key(lowered, [0]) != key
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert executable_cache._program_key(lowered, [1]) != key


class Renamed(NamedTuple):
    x: jax.Array


def test_other_argument_pytrees_are_compiled_again(cache):
    """The same program with other pytrees, for example after a layer was renamed."""
    mesh = data_mesh()
    _, x = arguments(mesh)

    def compiles(x_tree, value_of):
        step = jax.jit(lambda x_tree: {"y": value_of(x_tree) * jnp.asarray(TABLE)})
        cached = CachedExecutable(step, "label", mesh)
        actual, compiled = call_in_new_process(lambda: cached(x_tree))
        np.testing.assert_allclose(actual["y"], x * TABLE, rtol=1e-6)
        return compiled

    assert compiles({"a": x}, lambda x_tree: x_tree["a"])
    assert compiles({"b": x}, lambda x_tree: x_tree["b"])
    assert not compiles({"b": x}, lambda x_tree: x_tree["b"])
    assert compiles(Renamed(x), lambda x_tree: x_tree.x)
    assert not compiles(Renamed(x), lambda x_tree: x_tree.x)


class Versioned:
    """Metadata of a pytree whose older instances lack an attribute."""

    def __init__(self):
        self.new_name = 1

    def __eq__(self, other):
        return self.new_name == other.new_name

    def __hash__(self):
        return 0


class Tagged:
    """A pytree node with an array and metadata."""

    def __init__(self, x, tag):
        self.x, self.tag = x, tag


def test_an_executable_of_an_older_version_is_compiled_again(cache, monkeypatch):
    mesh = data_mesh()
    _, x = arguments(mesh)
    jax.tree_util.register_pytree_node(
        Tagged, lambda tagged: ((tagged.x,), tagged.tag), lambda tag, x: Tagged(x[0], tag)
    )

    def compiles():
        step = jax.jit(lambda argument: argument.x * jnp.asarray(TABLE))
        cached = CachedExecutable(step, "label", mesh)
        actual, compiled = call_in_new_process(lambda: cached(Tagged(x, Versioned())))
        np.testing.assert_allclose(actual, x * TABLE, rtol=1e-6)
        return compiled

    assert compiles() and not compiles()
    monkeypatch.setattr(Versioned, "__setstate__", lambda self, state: None, raising=False)
    assert compiles()


def test_a_step_in_the_compilation_cache_of_jax_is_cached_too(cache):
    mesh = data_mesh()
    make_step(TABLE, mesh)(*arguments(mesh))  # Compiled and cached by JAX only.
    first = launch(TABLE, mesh)
    assert first.compiled and len(stored(cache)) == 1
    state, x = jax.device_get(arguments(mesh))
    np.testing.assert_allclose(first.results[0], state + x * TABLE, rtol=1e-6)


def test_jax_still_caches_other_programs(cache):
    mesh = data_mesh()
    launch(TABLE, mesh)
    before = set(cache.parent.glob("*-cache"))
    jax.jit(lambda x: (x * 3 + jnp.asarray(TABLE)).sum())(arguments(mesh)[0]).block_until_ready()
    assert set(cache.parent.glob("*-cache")) > before


def test_unpickled_random_number_generators_are_the_original_ones():
    # An equal copy would change the program of a step that samples a Beta distribution.
    pickle_generators_by_name()
    original = jax.extend.random.threefry_prng_impl
    assert pickle.loads(pickle.dumps(original)) is original
    own = original._replace(name="own")
    assert pickle.loads(pickle.dumps(own)) == own
