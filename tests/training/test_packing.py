"""Packing of small parameters: values, shardings and checkpoint names are unchanged."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from flax import nnx

from imta_jax.distributed import data_mesh, place_batch
from imta_jax.models import build_classifier
from imta_jax.nn.pixels import normalize
from imta_jax.training.checkpoints import CheckpointStore
from imta_jax.training.packing import MAX_PACKED_SIZE, Packing, packed_like, unpacked
from imta_jax.training.state import create_state, named_arrays

pytestmark = pytest.mark.usefixtures("compilation_cache")


def any_leaf(leaf):
    return True


def draw_tree():
    generator = np.random.default_rng(0)

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    return {
        "large": draw(MAX_PACKED_SIZE + 1),
        "just": draw(MAX_PACKED_SIZE),
        "kernel": draw(3, 3, 2, 4),
        "scalar": draw(),
        "none": draw(0, 3),
        "count": np.arange(3),
        "half": draw(5).astype(jnp.bfloat16),
    }


@pytest.mark.parametrize("may_pack", [any_leaf, lambda x: False, lambda x: x.ndim == 4])
def test_unpacking_inverts_packing(may_pack):
    tree = draw_tree()
    packing = Packing.from_tree(tree, may_pack)
    chex.assert_trees_all_equal(packing.pack(tree).unpack(), tree)
    round_trip = jax.jit(lambda x: packing.pack(x).unpack())
    chex.assert_trees_all_equal(round_trip(jax.tree.map(jnp.asarray, tree)), tree)


def test_only_small_float32_leaves_are_packed():
    tree = draw_tree()
    packed = Packing.from_tree(tree, any_leaf).pack(tree)
    small = ("just", "kernel", "none", "scalar")  # In the order of their names.
    expected = np.concatenate([tree[name].ravel() for name in small])
    np.testing.assert_array_equal(packed.vector, expected)
    chex.assert_trees_all_equal(packed.large, (tree["count"], tree["half"], tree["large"]))


def test_unpacked_arrays_survive_donation_of_the_vector():
    packed = jax.tree.map(jnp.asarray, Packing.from_tree(draw_tree(), any_leaf).pack(draw_tree()))
    tree = packed.unpack()
    jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)(packed.vector)
    np.testing.assert_array_equal(tree["just"], draw_tree()["just"])


def test_packed_pytrees_within_others_are_unpacked():
    tree = draw_tree()
    packed = jax.tree.map(jnp.asarray, Packing.from_tree(tree, any_leaf).pack(tree))
    chex.assert_trees_all_equal(unpacked({"a": packed, "b": 1}), {"a": packed.unpack(), "b": 1})
    again = packed_like(unpacked({"a": packed, "b": 1}), {"a": packed, "b": 0})
    chex.assert_trees_all_equal(again, {"a": packed, "b": 1})
    assert again["a"].vector.sharding == packed.vector.sharding


def test_most_arrays_but_few_values_of_a_network_are_packed():
    classifier = build_classifier(
        {"preset": "cifar_7_exits"}, num_classes=100, image_shape=(32, 32, 3), rngs=nnx.Rngs(0)
    )
    params = nnx.state(classifier, nnx.Param)
    packed = Packing.from_tree(params, any_leaf).pack(params)
    assert len(jax.tree.leaves(params)) == 614
    assert len(packed.large) == 84
    assert packed.vector.size == 197_520 < 0.05 * sum(x.size for x in jax.tree.leaves(params))


def test_sharded_parameters_are_not_packed():
    phase = tiny_run.make_phase("phase_one", data_mesh())
    for shards in (1, 4):
        mesh = data_mesh(parameter_shards=shards)
        _, state = create_state(phase.classifier, phase.trainable, phase.optimizer, mesh)
        packed_shapes = [
            shape
            for shape, packed in zip(
                state.trainable.packing.shapes, state.trainable.packing.packed, strict=True
            )
            if packed
        ]
        assert packed_shapes
        assert shards == 1 or not any(size % 4 == 0 for shape in packed_shapes for size in shape)
        assert state.trainable.vector.sharding.is_fully_replicated


@pytest.mark.parametrize("shards", [(1, 4), (4, 1)])
def test_a_checkpoint_restores_a_state_with_other_sharding_and_packing(shards, tmp_path):
    states = []
    for count in shards:
        mesh = data_mesh(parameter_shards=count)
        phase = tiny_run.make_phase("phase_one", mesh, seed=count)
        states.append(create_state(phase.classifier, phase.trainable, phase.optimizer, mesh)[1])
    saved, other = states
    assert saved.trainable.packing != other.trainable.packing
    with CheckpointStore(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {}, 0.0)
        checkpoints.wait()
        actual, _ = checkpoints.restore_latest(other)
    places = [jax.tree.map(lambda x: x.sharding, state) for state in (actual, other)]
    assert places[0] == places[1]
    for part in ("trainable", "rest", "opt_state"):
        found_part, saved_part = (named_arrays(getattr(x, part)) for x in (actual, saved))
        chex.assert_trees_all_equal(found_part, saved_part)


def test_a_step_updates_each_parameter_as_without_packing():
    phase = tiny_run.make_phase("phase_one", data_mesh(jax.devices()[:1]))
    state = phase.new_state()
    before = jax.tree.map(jnp.array, unpacked(state.trainable))
    rest = jax.tree.map(jnp.copy, state.rest)
    moments = phase.optimizer.init(before)
    batch = tiny_run.draw_batch(16, seed=0)
    state, _ = phase.step(state, place_batch(batch, phase.mesh))

    def loss(params):
        classifier = nnx.merge(phase.graphdef, params, rest, copy=True)
        images = normalize(batch.images, **tiny_run.PIXELS)
        return phase.objective(classifier, images, jnp.asarray(batch.labels))[0]

    updates, moments = phase.optimizer.update(jax.jit(jax.grad(loss))(before), moments, before)
    expected = named_arrays(optax.apply_updates(before, updates)) | named_arrays(moments)
    actual = named_arrays(state.trainable) | named_arrays(state.opt_state)
    chex.assert_trees_all_close(actual, expected, rtol=2e-3, atol=2e-5)


def test_a_checkpoint_has_every_parameter_under_its_name(tmp_path):
    phase = tiny_run.make_phase("phase_one", data_mesh())
    state, _ = phase.step(phase.new_state(), place_batch(tiny_run.draw_batch(16, 0), phase.mesh))
    with CheckpointStore(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, 0.0)
        checkpoints.wait()
        stored = checkpoints._manager.item_metadata(1)
        actual, _ = checkpoints.restore_latest(phase.new_state())
    names = named_arrays(nnx.state(phase.classifier))
    assert {n: tuple(x.shape) for n, x in stored.model.items()} == {
        name: x.shape for name, x in names.items()
    }
    moments = {
        n.rsplit("trace.")[-1].removesuffix(".value") for n in stored.progress if "trace" in n
    }
    assert moments == set(named_arrays(nnx.state(phase.classifier, nnx.Param)))
    chex.assert_trees_all_equal(actual, state)
