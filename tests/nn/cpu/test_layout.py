"""The axes of feature maps: NHWC and CHWN."""

import chex
import jax.numpy as jnp
import pytest

from imta_jax.nn.cpu.layout import Layout


@pytest.mark.parametrize("layout", Layout)
def test_transpose_is_its_own_inverse(layout: Layout):
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    transposed = layout.transpose(x)
    assert transposed.shape[layout.channel_axis] == 5
    chex.assert_trees_all_equal(layout.transpose(transposed), x)


@pytest.mark.parametrize("layout", Layout)
def test_values_per_channel_broadcast_over_maps(layout: Layout):
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    added = layout.transpose(layout.transpose(x) + layout.per_channel(jnp.arange(5)))
    chex.assert_trees_all_equal(added, x + jnp.arange(5)[None, None, None])
