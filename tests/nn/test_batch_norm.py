"""Batch normalization: values, gradient and running statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.nn.batch_norm import BatchNorm, batch_normalize
from imta_jax.nn.fused import normalize_jointly

EPSILON = 1e-5
SHAPES = [(4, 6, 5, 3), (16, 7), (2, 1, 1, 4)]


def drawn(shape: tuple[int, ...], seed: int = 0, offset: float = 0.5) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(offset, 2, shape), jnp.float32)


def by_definition(x: jax.Array, scale: jax.Array, bias: jax.Array, relu: bool) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    centered = x - x.mean(axes, keepdims=True)
    deviation = jnp.sqrt((centered**2).mean(axes, keepdims=True) + EPSILON)
    ones = (1,) * (x.ndim - 1)
    y = centered / deviation * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)
    return jnp.where(y > 0, y, 0) if relu else y


def affine(width: int) -> tuple[jax.Array, jax.Array]:
    return drawn((width,), 1), drawn((width,), 2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient_equal_the_definition(shape: tuple[int, ...], relu: bool) -> None:
    x, (scale, bias), weights = drawn(shape), affine(shape[-1]), drawn(shape, 3)

    def ours(*arguments: jax.Array) -> jax.Array:
        return (batch_normalize(*arguments, EPSILON, relu)[0] * weights).sum()

    def reference(*arguments: jax.Array) -> jax.Array:
        return (by_definition(*arguments, relu) * weights).sum()

    actual = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(x, scale, bias)
    expected = jax.jit(jax.value_and_grad(reference, (0, 1, 2)))(x, scale, bias)
    chex.assert_trees_all_close(actual, expected, rtol=2e-4, atol=2e-4)


def test_gradient_is_orthogonal_to_the_mean_and_the_scale() -> None:
    """The result does not depend on the mean and the scale of the map."""
    x, (scale, bias) = drawn((8, 4, 4, 3)), affine(3)
    y, vjp = jax.vjp(lambda x: batch_normalize(x, scale, bias, EPSILON)[0], x)
    (gradient,) = vjp(drawn(y.shape, 3))
    size = np.abs(gradient).sum((0, 1, 2))
    np.testing.assert_array_less(np.abs(gradient.sum((0, 1, 2))), 1e-5 * size)
    np.testing.assert_array_less(np.abs((gradient * y).sum((0, 1, 2))), 1e-4 * size)


def test_no_gradient_flows_through_the_returned_statistics() -> None:
    x, (scale, bias) = drawn((8, 3)), affine(3)
    gradient = jax.grad(
        lambda x: sum(m.sum() for m in batch_normalize(x, scale, bias, EPSILON)[1:])
    )
    np.testing.assert_array_equal(gradient(x), 0)


def test_a_constant_channel_becomes_its_bias() -> None:
    x, (scale, bias) = jnp.full((16, 4, 4, 3), 7.3), affine(3)
    y, mean, variance = batch_normalize(x, scale, bias, EPSILON)
    assert float(variance.min()) >= 0
    np.testing.assert_allclose(mean, 7.3, rtol=1e-5)
    np.testing.assert_allclose(y, jnp.broadcast_to(bias, y.shape), atol=0.02)


def test_bfloat16_maps_have_float32_statistics() -> None:
    x, (scale, bias) = drawn((64, 8, 8, 3)), affine(3)
    y, *moments = batch_normalize(x.astype(jnp.bfloat16), scale, bias, EPSILON)
    assert y.dtype == jnp.bfloat16
    assert {m.dtype for m in moments} == {jnp.dtype("float32")}
    np.testing.assert_allclose(moments[0], x.mean((0, 1, 2)), atol=0.01)
    gradient = jax.grad(lambda x: batch_normalize(x, scale, bias, EPSILON)[0].sum())
    assert gradient(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("channel_axis", [-1, 0])
def test_groups_are_normalized_like_batches_of_their_own(channel_axis: int) -> None:
    x, (scale, bias), weights = drawn((6, 4, 5, 3)), affine(3), drawn((6, 4, 5, 3), 3)

    def grouped(*arguments: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x, *rest = arguments
        moved = x if channel_axis == -1 else jnp.swapaxes(x, 0, -1)
        y, *moments = batch_normalize(moved, *rest, EPSILON, True, channel_axis, groups=2)
        y = y if channel_axis == -1 else jnp.swapaxes(y, 0, -1)
        return (y * weights).sum(), (y, *moments)

    def separate(*arguments: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x, *rest = arguments
        halves = [batch_normalize(half, *rest, EPSILON, True) for half in jnp.split(x, 2)]
        ys, *moments = zip(*halves, strict=True)
        y = jnp.concatenate(ys)
        return (y * weights).sum(), (y, *(sum(pair) / 2 for pair in moments))

    differentiated = [jax.jit(jax.value_and_grad(f, (0, 1, 2), True)) for f in (grouped, separate)]
    actual, expected = (f(x, scale, bias) for f in differentiated)
    chex.assert_trees_all_close(actual, expected, rtol=2e-4, atol=2e-4)


@pytest.fixture
def norms() -> list[BatchNorm]:
    made = [BatchNorm(width, rngs=nnx.Rngs(0)) for width in (2, 5, 3)]
    for i, norm in enumerate(made):
        norm.scale.set_value(drawn((norm.num_features,), 10 + i))
        norm.bias.set_value(drawn((norm.num_features,), 20 + i))
        norm.train()
    return made


@pytest.mark.parametrize("train", [True, False])
def test_joint_normalization_equals_one_by_one(norms: list[BatchNorm], train: bool) -> None:
    x, alone = drawn((4, 6, 6, 10)), [nnx.clone(norm) for norm in norms]
    for norm in (*norms, *alone):
        norm.set_attributes(use_running_average=not train)
    joint = normalize_jointly(norms, x, relu=True)
    for norm, twin, y, part in zip(norms, alone, joint, jnp.split(x, [2, 7], axis=-1), strict=True):
        np.testing.assert_allclose(y, twin(part, relu=True), rtol=1e-6)
        assert float(y.min()) == 0
        np.testing.assert_allclose(norm.mean[...], twin.mean[...])
        np.testing.assert_allclose(norm.var[...], twin.var[...])
        assert bool((norm.mean[...] != 0).any()) == train


def test_running_variance_moves_towards_the_unbiased_variance(norms: list[BatchNorm]) -> None:
    """As in PyTorch: 0.9 of the old value, 0.1 of n/(n-1) times the batch's biased variance."""
    x = drawn((3, 2, 2, 5))
    norms[1](x)
    pixels = np.asarray(x).reshape(-1, 5)
    np.testing.assert_allclose(norms[1].var[...], 0.9 + 0.1 * pixels.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(norms[1].mean[...], 0.1 * pixels.mean(0), rtol=1e-5)


def test_training_does_not_read_the_sharding_of_a_traced_array(
    norms: list[BatchNorm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flax reads it when a variable is set by index, at a cost quadratic in the depth."""

    def read(tracer: jax.core.Tracer) -> None:
        raise AssertionError("the sharding of a tracer was read")

    @nnx.jit
    def step(norm: BatchNorm, x: jax.Array) -> jax.Array:
        with monkeypatch.context() as patched:
            patched.setattr(jax.core.Tracer, "sharding", property(read))
            return norm(x)

    step(norms[0], drawn((4, 2)))
