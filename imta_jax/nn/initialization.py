"""Parameter initializers: He normal (the paper), PyTorch's default uniform (the published code).

Values are drawn with NumPy and copied to the device. Flax's initializers and `jnp.asarray` compile
one program per shape, which takes longer than the first training steps.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from imta_jax.errors import unknown_name

Initializer = Callable[..., jax.Array]


def _from_numpy(draw: Callable[[np.random.Generator, Sequence[int]], np.ndarray]) -> Initializer:
    """Makes an initializer from a NumPy draw, seeded by the JAX key that it receives."""

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        if isinstance(key, Tracer):  # nnx.eval_shape: only shape and dtype are used
            return jnp.zeros(shape, dtype)
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jax.device_put(draw(generator, shape).astype(dtype))

    return init


def constant(value: float) -> Initializer:
    """Fills the array with `value`."""
    return _from_numpy(lambda generator, shape: np.full(shape, value))


def uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for kernels and biases."""
    bound = 1 / math.sqrt(fan_in)
    return _from_numpy(lambda generator, shape: generator.uniform(-bound, bound, shape))


def he_normal(fan_out: int) -> Initializer:
    """N(0, 2 / fan_out) (He et al., 2015), with fan_out = kernel area x output channels."""
    std = math.sqrt(2 / fan_out)
    return _from_numpy(lambda generator, shape: generator.normal(0.0, std, shape))


@dataclasses.dataclass(frozen=True)
class Initialization:
    """The initializers of a network.

    Attributes:
      conv_kernel: (fan_in, fan_out) of a convolution -> initializer of its kernel.
      linear_kernel: fan_in of a linear layer -> initializer of its kernel.
      bias: fan_in -> initializer of the bias of a convolution or linear layer.
    """

    conv_kernel: Callable[[int, int], Initializer]
    linear_kernel: Callable[[int], Initializer]
    bias: Callable[[int], Initializer]


# The published code intends "he_normal" but runs with "pytorch": its initialization loop never
# reaches a convolution.
INITIALIZATIONS = {
    "he_normal": Initialization(
        conv_kernel=lambda fan_in, fan_out: he_normal(fan_out),
        linear_kernel=uniform,
        bias=lambda fan_in: constant(0.0),
    ),
    "pytorch": Initialization(
        conv_kernel=lambda fan_in, fan_out: uniform(fan_in),
        linear_kernel=uniform,
        bias=uniform,
    ),
}


def get_initialization(name: str) -> Initialization:
    """Returns the initialization of that name.

    Raises:
      ValueError: `name` is not in `INITIALIZATIONS`.
    """
    if name not in INITIALIZATIONS:
        raise unknown_name("initialization", name, INITIALIZATIONS)
    return INITIALIZATIONS[name]
