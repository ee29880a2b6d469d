"""Learned sample weights: the network, its normalization, and the meta loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.techniques.sample_weights import (
    WeightNetwork,
    leaving_counts,
    meta_loss,
    new_weight_network,
    sample_weights,
)

NETWORK = new_weight_network(3, seed=0)
LOSSES = jnp.asarray(np.random.default_rng(1).exponential(size=(3, 20)), jnp.float32)


def test_weights_equal_the_formula():
    """Two exits, one hidden unit: u = tanh((2, -1) * relu(l_1 + 3 l_2 - 1))."""
    network = WeightNetwork(*map(jnp.asarray, ([[1.0], [3.0]], [-1.0], [[2.0, -1.0]], [0.0, 0.0])))
    actual = sample_weights(network, jnp.asarray([[0.1, 0.5], [0.1, 0.4]]), scale=0.8)
    hidden = np.array([0.0, 0.7])
    u = np.tanh(np.outer([2.0, -1.0], hidden))
    np.testing.assert_allclose(actual, 1 + 0.8 * (u - u.mean(axis=0)), rtol=1e-6)


def test_weights_of_an_image_have_mean_one_and_stay_within_the_scale():
    large = jax.tree.map(lambda x: 30 * x, NETWORK)
    weights = sample_weights(large, LOSSES, scale=0.8)
    np.testing.assert_allclose(weights.mean(axis=0), 1, rtol=1e-6)
    assert jnp.abs(weights - 1).max() <= 2 * 0.8


def test_the_weights_pass_no_gradient_to_the_losses():
    gradient = jax.grad(lambda losses: (sample_weights(NETWORK, losses) ** 2).sum())(LOSSES)
    np.testing.assert_array_equal(gradient, 0)


def test_seeds_determine_the_network():
    same, other = new_weight_network(3, 0), new_weight_network(3, 1)
    assert all(map(np.array_equal, NETWORK, same))
    assert not np.array_equal(NETWORK.output_kernel, other.output_kernel)
    assert np.abs(NETWORK.output_kernel).max() <= 500**-0.5


@pytest.mark.parametrize(
    ("exits", "images", "expected"), [(2, 7, (4, 3)), (3, 37, (16, 12, 9)), (1, 5, (5,))]
)
def test_leaving_counts_are_rounded_down_but_for_the_last(exits, images, expected):
    """Shares at quota 3/4: 4/7, 3/7; and 16/37, 12/37, 9/37."""
    assert leaving_counts(exits, images) == expected


def test_meta_loss_lets_the_most_confident_images_leave_first():
    """Exit 1 takes images 2 and 0 of four, the last exit images 1 and 3."""
    z = np.array(
        [[[2.0, 0], [0.5, 0], [0, 3.0], [0, 1.0]], [[9.0, 0], [0, 1.0], [9.0, 0], [0, 2.0]]]
    )
    labels = np.array([0, 0, 1, 0])
    nats = np.log(np.exp(z).sum(-1)) - z[:, np.arange(4), labels]
    expected = nats[0, [0, 2]].mean() + nats[1, [1, 3]].mean()
    actual = meta_loss(jnp.asarray(z, jnp.float32), jnp.asarray(labels), (2, 2))
    assert actual == pytest.approx(expected, rel=1e-5)


def test_exits_without_an_image_add_nothing():
    z = jax.random.normal(jax.random.key(0), (3, 4, 5))
    labels = jnp.arange(4)
    expected = meta_loss(z[2:], labels, (4,))
    assert meta_loss(z, labels, (0, 0, 4)) == pytest.approx(float(expected), rel=1e-6)


def test_only_images_that_leave_get_a_gradient_at_an_exit():
    z, labels = jax.random.normal(jax.random.key(1), (2, 6, 3)), jnp.zeros(6, int)
    gradient = jax.grad(lambda z: meta_loss(z, labels, (2, 4)))(z)
    active = (jnp.abs(gradient) > 0).any(axis=-1)
    np.testing.assert_array_equal(active.sum(axis=1), [2, 4])
    np.testing.assert_array_equal(active.sum(axis=0), 1)
