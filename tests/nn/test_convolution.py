"""Every form of a convolution is the convolution: values and both gradients, at every shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.layout import Layout

# [H, W, inputs, outputs, kernel, stride]: each form, and the shapes just beside it.
SHAPES = [
    (8, 8, 5, 7, 1, 1),  # matrix product
    (6, 6, 5, 7, 1, 2),
    (8, 8, 6, 6, 3, 1),  # pairs of columns
    (5, 8, 3, 1, 3, 1),
    (2, 2, 3, 4, 3, 1),
    (8, 7, 6, 6, 3, 1),  # an odd width has no pairs
    (8, 8, 6, 8, 3, 1),
    (8, 8, 3, 16, 3, 1),
    (8, 8, 8, 8, 3, 1),
    (4, 4, 6, 6, 3, 2),  # patches
    (3, 3, 6, 6, 3, 2),
    (8, 8, 6, 6, 3, 2),  # patches, of few channels
    (7, 8, 6, 12, 3, 2),
    (8, 8, 9, 6, 3, 2),
    (9, 9, 3, 4, 7, 2),
]
LAYOUTS = list(Layout)


def direct(x, kernel, stride):
    """The sum over the kernel's positions, written out."""
    k = kernel.shape[0]
    rows, columns = (-(-side // stride) for side in x.shape[1:3])
    margin = k // 2
    x = jnp.pad(x, ((0, 0), (margin, margin + stride), (margin, margin + stride), (0, 0)))
    return sum(
        x[:, i : i + stride * rows : stride, j : j + stride * columns : stride] @ kernel[i, j]
        for i in range(k)
        for j in range(k)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("height, width, inputs, outputs, size, stride", SHAPES)
def test_every_form_is_the_convolution(height, width, inputs, outputs, size, stride, layout):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, height, width, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, inputs, outputs)), jnp.float32)
    expected, transposed = jax.vjp(lambda *a: direct(*a, stride), x, kernel)

    def in_layout(x, kernel):
        return layout.turned(convolve(layout.turned(x), kernel, stride, layout))

    found, found_transposed = jax.vjp(in_layout, x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    gradient = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    for ours, theirs in zip(found_transposed(gradient), transposed(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_narrow_convolution_is_told_to_each_platform_in_its_form(platform):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 6), (3, 3, 6, 6))]
    text = jax.jit(convolve).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<2x8x4x24xf32>" in text) == (platform == "cpu"), text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_computes_in_the_type_of_the_maps(layout, size, stride):
    x = layout.turned(jnp.ones((1, 4, 4, 2), jnp.bfloat16))
    kernel = jnp.ones((size, size, 2, 3), jnp.float32)
    y, transposed = jax.vjp(lambda *a: convolve(*a, stride, layout), x, kernel)
    assert y.dtype == jnp.bfloat16
    assert [gradient.dtype for gradient in transposed(y)] == [jnp.bfloat16, jnp.float32]
