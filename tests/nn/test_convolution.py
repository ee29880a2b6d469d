"""Every implementation of a convolution has the values and gradients of the definition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.distributed import batch_sharding, data_mesh, replicated
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.channels_first import convolve_channels_first
from imta_jax.nn.cpu.layout import Layout

# [H, W, inputs, outputs, kernel, stride]: shapes of each implementation, and similar shapes.
SHAPES = [
    (8, 8, 5, 7, 1, 1),  # Matrix product.
    (6, 6, 5, 7, 1, 2),
    (8, 8, 6, 6, 3, 1),  # Pairs of columns.
    (5, 8, 3, 1, 3, 1),
    (2, 2, 3, 4, 3, 1),
    (8, 7, 6, 6, 3, 1),  # An odd width has no pairs.
    (8, 8, 6, 8, 3, 1),
    (8, 8, 3, 16, 3, 1),
    (8, 8, 8, 8, 3, 1),
    (4, 4, 6, 6, 3, 2),  # Patches.
    (3, 3, 6, 6, 3, 2),
    (8, 8, 6, 6, 3, 2),  # Patches of few channels.
    (7, 8, 6, 12, 3, 2),
    (8, 8, 9, 6, 3, 2),
    (9, 9, 3, 4, 7, 2),
]
CONVOLUTIONS = {Layout.NHWC: convolve, Layout.CHWN: convolve_channels_first}


def direct(x, kernel, stride):
    """The sum over the positions of the kernel."""
    k = kernel.shape[0]
    rows, columns = (-(-side // stride) for side in x.shape[1:3])
    margin = k // 2
    x = jnp.pad(x, ((0, 0), (margin, margin + stride), (margin, margin + stride), (0, 0)))
    return sum(
        x[:, i : i + stride * rows : stride, j : j + stride * columns : stride] @ kernel[i, j]
        for i in range(k)
        for j in range(k)
    )


@pytest.mark.parametrize("layout", CONVOLUTIONS)
@pytest.mark.parametrize("height, width, inputs, outputs, size, stride", SHAPES)
def test_every_implementation_equals_the_definition(
    height, width, inputs, outputs, size, stride, layout
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, height, width, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, inputs, outputs)), jnp.float32)
    expected, transposed = jax.vjp(lambda *a: direct(*a, stride), x, kernel)

    def in_layout(x, kernel):
        return layout.transpose(CONVOLUTIONS[layout](layout.transpose(x), kernel, stride))

    actual, found_transposed = jax.vjp(in_layout, x, kernel)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-4)
    gradient = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    chex.assert_trees_all_close(
        found_transposed(gradient), transposed(gradient), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_cpus_use_the_implementation_for_few_channels(platform):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 6), (3, 3, 6, 6))]
    text = jax.jit(convolve).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<2x8x4x24xf32>" in text) == (platform == "cpu"), text


@pytest.mark.parametrize("layout", CONVOLUTIONS)
@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_convolutions_compute_in_the_dtype_of_the_maps(layout, size, stride):
    x = layout.transpose(jnp.ones((1, 4, 4, 2), jnp.bfloat16))
    kernel = jnp.ones((size, size, 2, 3), jnp.float32)
    y, transposed = jax.vjp(lambda *a: CONVOLUTIONS[layout](*a, stride), x, kernel)
    assert y.dtype == jnp.bfloat16
    assert [gradient.dtype for gradient in transposed(y)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("height, width, inputs, outputs, size, stride", SHAPES)
def test_kernel_gradients_of_bfloat16_maps_are_float32(
    height, width, inputs, outputs, size, stride
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, height, width, inputs)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(size, size, inputs, outputs)), jnp.float32)
    y, transposed = jax.vjp(lambda kernel: convolve(x, kernel, stride), kernel)
    gradient = jnp.asarray(rng.normal(size=y.shape), jnp.bfloat16)
    wide = jax.vjp(lambda kernel: direct(x.astype(jnp.float32), kernel, stride), kernel)[1]
    (expected,) = wide(gradient.astype(jnp.float32))
    chex.assert_trees_all_close(transposed(gradient)[0], expected, rtol=1e-4, atol=1e-4)


def test_devices_add_up_kernel_gradients_of_bfloat16_maps_in_float32():
    mesh, rng = data_mesh(), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 8, 8, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.float32)

    def gradient(x, kernel):
        return jax.grad(lambda k: (convolve(x, k, 1).astype(jnp.float32) ** 2).sum())(kernel)

    shardings = {"in_shardings": (batch_sharding(mesh), replicated(mesh))}
    compiled = (
        jax.jit(gradient, out_shardings=replicated(mesh), **shardings).lower(x, kernel).compile()
    )
    sums = [line for line in compiled.as_text().splitlines() if " all-reduce(" in line]
    assert sums and all("bf16[" not in line for line in sums)
    on_one_device = jax.jit(gradient)(x, kernel)
    chex.assert_trees_all_close(
        np.asarray(compiled(*jax.device_put((x, kernel), shardings["in_shardings"]))),
        np.asarray(on_one_device),
        rtol=1e-5,
        atol=1e-2,
    )
