"""Gradient equilibrium: the forward pass is unchanged, the backward pass follows Eq. 4-6.

Eq. 5 is checked on a real network, for every output of a stage and every exit that reads it.
"""

import functools
from typing import NamedTuple

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.models import MultiExitClassifier
from imta_jax.techniques import (
    EQUILIBRIUM_MODES,
    cross_entropy,
    rescale_gradient,
    split_gradient,
)

TREE = {
    "map": jnp.asarray([1.1, -2.7e-8, 3e20, jnp.pi]),
    "half": jnp.asarray([1.1, -3.3], jnp.bfloat16),
    "nested": (jnp.asarray([1, -7, 3]), [jnp.asarray(True), None]),
}


def gradient(x: jax.Array, scale: float | jax.Array) -> jax.Array:
    """Gradient of sum(x^2) after the rescaling; 2 x without it."""
    return jax.grad(lambda x: (rescale_gradient(x, scale) ** 2).sum())(x)


def random_vector(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (5,))


# The operator.


class RescalingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_rescaling_returns_any_tree_bit_for_bit(self):
        actual = self.variant(lambda tree: rescale_gradient(tree, 0.3))(TREE)
        chex.assert_trees_all_equal(actual, TREE, strict=True)
        chex.assert_trees_all_equal_dtypes(actual, TREE)

    @chex.variants(with_jit=True, without_jit=True)
    def test_both_sides_of_a_split_equal_the_state(self):
        state = (random_vector(0), random_vector(1))
        for mode in EQUILIBRIUM_MODES:
            split = self.variant(
                functools.partial(split_gradient, equilibrium=mode), static_argnums=(1, 2)
            )
            for side in split(state, 1, 4):
                chex.assert_trees_all_equal(side, state, strict=True)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, -3.0])
def test_gradient_is_multiplied_by_the_scale(scale: float):
    x = random_vector(0)
    np.testing.assert_allclose(gradient(x, scale), scale * 2 * x, rtol=1e-6)


def test_gradients_of_a_tree_keep_structure_and_types():
    floats = {"a": random_vector(1), "b": (random_vector(2).astype(jnp.bfloat16),)}

    def total(tree: dict) -> jax.Array:
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(tree))

    actual = jax.grad(lambda tree: total(rescale_gradient(tree, 0.5)))(floats)
    expected = jax.tree.map(lambda x: jnp.full_like(x, 0.5), floats)
    chex.assert_trees_all_equal(actual, expected, strict=True)


def test_integers_in_a_tree_keep_the_gradient_of_floats():
    def loss(x: jax.Array, index: jax.Array) -> jax.Array:
        x, index = rescale_gradient((x, index), 0.5)
        return x[index] ** 2

    x = random_vector(3)
    actual = jax.grad(loss)(x, jnp.asarray(2))
    np.testing.assert_allclose(actual, jnp.zeros(5).at[2].set(x[2]), rtol=1e-6)


def test_a_traced_scale_works_and_receives_no_gradient():
    x = random_vector(4)
    np.testing.assert_allclose(jax.jit(gradient)(x, jnp.float32(0.3)), 0.6 * x, rtol=1e-6)
    to_scale = jax.grad(lambda scale: (rescale_gradient(x, scale) ** 2).sum())(0.3)
    assert to_scale == 0


def test_rescaling_works_under_vmap():
    rows, scales = jnp.stack([random_vector(5), random_vector(6)]), jnp.asarray([0.5, 2.0])
    np.testing.assert_allclose(jax.vmap(gradient)(rows, scales), 2 * scales[:, None] * rows, 1e-6)
    shared = jax.vmap(gradient, in_axes=(0, None))(rows, 0.5)
    np.testing.assert_allclose(shared, rows, rtol=1e-6)


def test_scales_multiply_along_a_path():
    x = random_vector(7)
    actual = jax.grad(lambda x: rescale_gradient(rescale_gradient(x, 0.5), 0.25).sum())(x)
    np.testing.assert_allclose(actual, np.full(5, 0.125), rtol=1e-6)


# The split.


@pytest.mark.parametrize(("exit_index", "towards_exit"), [(0, 1 / 4), (1, 1 / 3), (3, 1.0)])
def test_the_two_factors_add_up_to_one(exit_index: int, towards_exit: float):
    def side(index: int) -> jax.Array:
        return jax.grad(lambda x: split_gradient((x,), exit_index, 4, "all")[index][0].sum())(
            jnp.ones(())
        )

    assert side(0) == pytest.approx(towards_exit)
    assert side(1) == pytest.approx(1 - towards_exit)


def test_an_unknown_equilibrium_is_rejected():
    with pytest.raises(ValueError, match=r"equilibrium 'coarse'.*: coarsest"):
        split_gradient((jnp.ones(1),), 0, 2, "coarse")


# Eq. 5 on a real network.

FIELDS = {"preset": "cifar_4_exits", "channels": 4, "growth_rate": 2}
NUM_EXITS = 4
Maps = tuple[tuple[jax.Array, ...], ...]


class Results(NamedTuple):
    """The gradient of every exit's loss with respect to every output of a stage, in one mode.

    Attributes:
      gradients: [stage][scale] -> [E, N, H, W, C].
      logits: [E, N, K], with probes of zero.
    """

    gradients: Maps
    logits: jax.Array


@pytest.fixture(scope="module")
def network() -> MultiExitClassifier:
    network = golden.untrained(FIELDS, image_shape=(16, 16, 3))
    network.train()
    return network


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (3, 16, 16, 3))


def probed_logits(
    network: MultiExitClassifier, images: jax.Array, probes: Maps, mode: str
) -> jax.Array:
    """Logits [E, N, K] with `probes` added to the output of each stage."""
    features = network.features(
        images, mode, tap=lambda i, state: jax.tree.map(jnp.add, state, probes[i])
    )
    return network.logits(features)


def zero_probes(network: MultiExitClassifier, images: jax.Array) -> Maps:
    """Zeros of the shapes of all stages' outputs; each scale has half the side of the last."""
    count, side = images.shape[:2]
    last_layers = [stage[-1] for stage in network.backbone.plan.stages]
    return tuple(
        tuple(
            jnp.zeros((count, side >> scale, side >> scale, channels))
            for scale, channels in enumerate(layer.outputs, start=layer.first_scale)
        )
        for layer in last_layers
    )


@pytest.fixture(scope="module")
def results(network: MultiExitClassifier, images: jax.Array) -> dict[str, Results]:
    graphdef, state = nnx.split(network)
    probes, labels = zero_probes(network, images), jnp.asarray([1, 4, 7])

    @functools.partial(jax.jit, static_argnums=1)
    def of_exit(weights: jax.Array, mode: str) -> Results:
        def loss(probes: Maps) -> tuple[jax.Array, jax.Array]:
            copy = nnx.merge(graphdef, state, copy=True)
            logits = probed_logits(copy, images, probes, mode)
            return weights @ cross_entropy(logits, labels), logits

        return Results(*jax.grad(loss, has_aux=True)(probes))

    def of_every_exit(mode: str) -> Results:
        one_by_one = [of_exit(weights, mode) for weights in jnp.eye(NUM_EXITS)]
        stacked = jax.tree.map(lambda *exits: np.stack(exits), *one_by_one)
        return stacked._replace(logits=stacked.logits[0])

    return {mode: of_every_exit(mode) for mode in EQUILIBRIUM_MODES}


@pytest.fixture(scope="module")
def gradients(results: dict[str, Results]) -> dict[str, Maps]:
    return {mode: actual.gradients for mode, actual in results.items()}


def every_map(maps: Maps) -> list[tuple[int, int]]:
    """(stage, scale) of every map, the coarsest scale last in each stage."""
    return [(i, s) for i, stage in enumerate(maps) for s in range(len(stage))]


def assert_ratio(actual: np.ndarray, plain: np.ndarray, ratio: float) -> None:
    np.testing.assert_allclose(actual, ratio * plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


def test_probes_of_zero_do_not_change_the_logits(network, images, results):
    graphdef, state = nnx.split(network)
    forward = jax.jit(lambda state: nnx.merge(graphdef, state, copy=True)(images, "all"))
    expected = forward(state)
    for actual in results.values():
        # Batch normalization over few positions amplifies rounding.
        np.testing.assert_allclose(actual.logits, expected, rtol=1e-3, atol=1e-4)


def test_every_exit_reaches_every_earlier_stage_and_no_later_one(gradients):
    plain = gradients["off"]
    assert len(every_map(plain)) > NUM_EXITS  # Several scales.
    for i, s in every_map(plain):
        coarsest = s == len(plain[i]) - 1
        for j in range(NUM_EXITS):
            # An exit reads the coarsest map only; finer ones are read by later stages.
            assert plain[i][s][j].any() == (j > i or (coarsest and j == i))


def test_equilibrium_scales_every_gradient_of_every_map_as_in_eq_5(gradients):
    """Eq. 5: 1/(k-i+1), i from 1."""
    plain, balanced = gradients["off"], gradients["all"]
    for i, s in every_map(plain):
        for j in range(i, NUM_EXITS):
            assert_ratio(balanced[i][s][j], plain[i][s][j], 1 / (NUM_EXITS - i))


def test_coarsest_equilibrium_holds_along_the_coarsest_scale_only(gradients):
    """No path leads from the coarsest map to a finer one, so Eq. 5 is exact there.

    A path from a finer map has its first factor where it joins the coarsest scale. From stage i to
    the next exit that is one stage later, with 1/(k-i) instead of 1/(k-i+1).
    """
    plain, balanced = gradients["off"], gradients["coarsest"]
    for i, s in every_map(plain):
        if s == len(plain[i]) - 1:
            for j in range(i, NUM_EXITS):
                assert_ratio(balanced[i][s][j], plain[i][s][j], 1 / (NUM_EXITS - i))
        elif i + 1 < NUM_EXITS:
            assert_ratio(balanced[i][s][i + 1], plain[i][s][i + 1], 1 / (NUM_EXITS - i - 1))


def test_summed_gradient_is_the_mean_over_later_exits(gradients):
    plain, balanced = gradients["off"], gradients["all"]
    for i, s in every_map(plain):
        remaining = plain[i][s][i:]
        mean = remaining.mean(axis=0)
        atol = 1e-5 * np.abs(remaining).max()
        np.testing.assert_allclose(balanced[i][s].sum(axis=0), mean, rtol=1e-4, atol=atol)


def test_gradient_equilibrium_leaves_forward_unchanged():
    network = golden.untrained(golden.TINY, image_shape=(16, 16, 3))
    graphdef, state = nnx.split(network)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))

    @functools.partial(jax.jit, static_argnums=1)
    def forward(state: nnx.State, mode: str) -> tuple[jax.Array, nnx.State]:
        copy = nnx.merge(graphdef, state, copy=True)
        return copy(images, mode), nnx.state(copy)

    results = [forward(state, mode) for mode in EQUILIBRIUM_MODES]
    for other in results[1:]:
        chex.assert_trees_all_equal(other, results[0])


def test_the_classifier_rejects_an_unknown_equilibrium():
    network = golden.untrained(golden.TINY, image_shape=(16, 16, 3))
    with pytest.raises(ValueError, match="equilibrium 'finest'"):
        network(jnp.zeros((1, 16, 16, 3)), "finest")
