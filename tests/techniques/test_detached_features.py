"""Detached feature halves: the forward pass is unchanged, each channel is trained by one side."""

import functools

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.models import MultiExitClassifier
from imta_jax.models.optimize import optimized_form
from imta_jax.nn.cpu.layout import Layout
from imta_jax.techniques import (
    DETACHED_MAPS,
    FeatureDetachment,
    cross_entropy,
    split_gradient,
    stop_channels,
)
from imta_jax.training.setup import phase_one_objective

STATE = (jnp.arange(8.0).reshape(2, 4), jnp.arange(10.0).reshape(2, 5))


def towards(side: int, detachment: FeatureDetachment, equilibrium: str = "off") -> list[np.ndarray]:
    """Gradient per channel of the sum of one side's maps, for each map of the state."""

    def total(state: tuple[jax.Array, ...]) -> jax.Array:
        sides = detachment(*split_gradient(state, 1, 4, equilibrium))
        return sum(x.sum() for x in sides[side])

    actual = jax.grad(total)(STATE)
    for gradient in actual:
        np.testing.assert_array_equal(gradient[0], gradient[1])
    return [np.asarray(gradient[0]) for gradient in actual]


# The operator.


@pytest.mark.parametrize(
    ("fraction", "kept"), [(0.5, [1, 1, 0, 0, 0]), (0.25, [1, 1, 1, 1, 0]), (0.9, [0, 0, 0, 0, 0])]
)
def test_gradient_of_the_last_channels_stops(fraction: float, kept: list[int]):
    actual = jax.grad(lambda x: (stop_channels(x, fraction=fraction) ** 2).sum())(STATE[1])
    np.testing.assert_array_equal(actual, 2 * np.asarray(STATE[1]) * kept)


def test_first_and_last_channels_are_complements():
    first, last = (
        jax.grad(lambda x, side=side: stop_channels(x, fraction=0.3, stopped=side).sum())(STATE[1])
        for side in ("first", "last")
    )
    np.testing.assert_array_equal(first + last, np.ones((2, 5)))


def test_channels_may_be_on_any_axis():
    actual = jax.grad(lambda x: stop_channels(x, axis=0).sum())(jnp.ones((4, 3)))
    np.testing.assert_array_equal(actual, np.repeat([[1.0], [0.0]], 2, axis=0) * np.ones((4, 3)))


@pytest.mark.parametrize("maps", DETACHED_MAPS)
@pytest.mark.parametrize("from_exit", [False, True])
def test_detachment_returns_both_sides_bit_for_bit(maps: str, from_exit: bool):
    detachment = FeatureDetachment(maps=maps, from_exit=from_exit)
    for side in jax.jit(detachment)(STATE, STATE):
        chex.assert_trees_all_equal(side, STATE, strict=True)


def test_arrays_without_channels_keep_their_gradient():
    def total(per_image: jax.Array) -> jax.Array:
        return FeatureDetachment(maps="all")((), (per_image, STATE[0]))[1][0].sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(6)), np.ones(6))


def test_the_coarsest_map_alone_is_detached():
    fine, coarse = towards(1, FeatureDetachment(maps="coarsest"))
    np.testing.assert_array_equal(fine, np.ones(4))
    np.testing.assert_array_equal(coarse, [1, 1, 0, 0, 0])


def test_the_exit_trains_all_channels_in_the_authors_code():
    for gradient in towards(0, FeatureDetachment(maps="all")):
        np.testing.assert_array_equal(gradient, np.ones(len(gradient)))


def test_each_channel_has_one_side_in_the_paper():
    detachment = FeatureDetachment(maps="all", from_exit=True)
    for exit_side, later_side in zip(towards(0, detachment), towards(1, detachment), strict=True):
        np.testing.assert_array_equal(exit_side + later_side, np.ones(len(exit_side)))
        assert (exit_side * later_side == 0).all()


def test_equilibrium_scales_the_gradients_that_remain():
    """Exit 2 of 4: 1/3 towards the exit, 2/3 towards later stages."""
    detachment = FeatureDetachment(maps="all")
    np.testing.assert_allclose(towards(0, detachment, "all")[1], np.full(5, 1 / 3), rtol=1e-6)
    later = towards(1, detachment, "all")[1]
    np.testing.assert_allclose(later, np.array([1, 1, 0, 0, 0]) * 2 / 3, rtol=1e-6)


def test_a_fraction_that_keeps_no_channel_is_rejected():
    with pytest.raises(ValueError, match=r"FeatureDetachment\.fraction.*1\.0"):
        FeatureDetachment(maps="all", fraction=1.0)


def test_the_fields_of_phase_one_define_the_detachment():
    config = tiny_run.run_config("unused", phase_one__detach="all", phase_one__detach_exit=True)
    expected = FeatureDetachment(maps="all", fraction=0.5, from_exit=True)
    assert phase_one_objective(config).detachment == expected
    assert phase_one_objective(tiny_run.run_config("unused")).detachment == FeatureDetachment()


# On a network.


@pytest.fixture(scope="module")
def network() -> MultiExitClassifier:
    network = golden.untrained(golden.TINY, image_shape=(16, 16, 3))
    network.train()
    return network


IMAGES = jax.random.normal(jax.random.key(0), (6, 16, 16, 3))
LABELS = jnp.arange(6)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def gradients(graphdef, state, detachment: FeatureDetachment, layout: Layout):
    """Loss, and the gradient of the summed loss with respect to all parameters."""

    def loss(params, rest):
        network = nnx.merge(graphdef, params, rest, copy=True)
        network = optimized_form(network, layout=layout)
        features = network.features(IMAGES, detachment=detachment)
        return cross_entropy(network.logits(features), LABELS).sum()

    return jax.value_and_grad(loss)(*state)


def of_network(network, detachment, layout=Layout.NHWC):
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    loss, actual = gradients(graphdef, (params, rest), detachment, layout)
    return loss, nnx.to_pure_dict(actual)


def test_detachment_changes_gradients_of_the_backbone_but_not_the_loss(network):
    plain_loss, plain = of_network(network, FeatureDetachment())
    loss, detached = of_network(network, FeatureDetachment(maps="all"))
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    # The linear layers read pooled features, so their gradients do not change.
    chex.assert_trees_all_close(detached["heads"], plain["heads"], rtol=1e-4, atol=1e-5)
    first, plain_first = (tree["backbone"]["first"] for tree in (detached, plain))
    changed = [
        not np.allclose(a, b, rtol=1e-3)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(plain_first), strict=True)
    ]
    assert any(changed)


def test_channels_are_those_of_the_maps_in_every_layout(network):
    detachment = FeatureDetachment(maps="all", fraction=0.25, from_exit=True)
    _, expected = of_network(network, detachment)
    _, actual = of_network(network, detachment, Layout.CHWN)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-4 * scale)


def test_a_later_loss_does_not_reach_the_last_channels_of_the_coarsest_map(network):
    outputs: list[tuple[jax.Array, ...]] = []
    network.features(IMAGES, tap=lambda i, state: (outputs.append(state), state)[1])
    zeros = jax.tree.map(jnp.zeros_like, outputs[0])

    @jax.jit
    def of_last_exit(added):
        def tap(i, state):
            return jax.tree.map(jnp.add, state, added) if i == 0 else state

        features = nnx.clone(network).features(
            IMAGES, detachment=FeatureDetachment(maps="coarsest"), tap=tap
        )
        return cross_entropy(network.logits(features), LABELS)[-1]

    actual = jax.grad(of_last_exit)(zeros)
    channels = actual[-1].shape[-1]
    m = round(channels / 2)
    assert 0 < m < channels
    assert np.abs(actual[-1][..., :m]).max() > 0
    np.testing.assert_array_equal(actual[-1][..., m:], 0)
    assert all(np.abs(x[..., -1]).max() > 0 for x in actual[:-1])
