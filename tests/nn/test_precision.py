"""Matrix products and convolutions on a CPU with every precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from imta_jax.nn.convolution import convolve
from imta_jax.nn.precision import with_matmul_precision


def test_a_cpu_computes_the_same_numbers_with_every_precision():
    draw = np.random.default_rng(0).normal
    x, kernel = (jnp.asarray(draw(size=s), jnp.float32) for s in ((2, 16, 16, 3), (3, 3, 3, 4)))

    def gradient(x, kernel):
        return jax.grad(lambda kernel: (convolve(x, kernel) ** 2).sum())(kernel)

    highest = jax.jit(with_matmul_precision(gradient, "highest"))(x, kernel)
    chex.assert_trees_all_equal(highest, jax.jit(gradient)(x, kernel))
