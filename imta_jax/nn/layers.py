"""The few layers that backbones and heads are made of, and how their parameters start.

PyTorch's conventions where the published weights need them: symmetric padding k // 2 and a running
variance that is updated with the unbiased batch variance. Initial values are drawn with NumPy and
put on the device as they are: Flax's initialisers, and `jnp.asarray`, compile once per shape, which
takes longer than training's first steps.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.errors import unknown_name
from imta_jax.nn.batch_norm import batch_normalize, normalize_by
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.layout import Layout

Initializer = Callable[..., jax.Array]


def _from_numpy(draw: Callable[[np.random.Generator, Sequence[int]], np.ndarray]) -> Initializer:
    """Makes an initialiser of a NumPy draw, seeded by the JAX key it is given."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        if isinstance(key, jax.core.Tracer):  # abstract construction: only shape and type matter
            return jnp.zeros(shape, dtype)
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jax.device_put(draw(generator, shape).astype(dtype))

    return init


def constant(value: float) -> Initializer:
    """An initialiser that fills the array with `value`."""
    return _from_numpy(lambda generator, shape: np.full(shape, value))


def uniform(fan_in: int) -> Initializer:
    """PyTorch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for kernels and biases alike."""
    bound = 1 / math.sqrt(fan_in)
    return _from_numpy(lambda generator, shape: generator.uniform(-bound, bound, shape))


def he_normal(fan_out: int) -> Initializer:
    """N(0, 2 / fan_out) (He et al., 2015), fan_out = kernel area x output channels."""
    return _from_numpy(
        lambda generator, shape: generator.normal(0.0, math.sqrt(2 / fan_out), shape)
    )


@dataclasses.dataclass(frozen=True)
class Initialization:
    """How a network's parameters start; each field maps a fan to an initialiser.

    Attributes:
      conv_kernel: called with fan_in and fan_out of a convolution.
      linear_kernel: called with fan_in.
      bias: called with fan_in; convolutions and linear layers.
    """

    conv_kernel: Callable[[int, int], Initializer]
    linear_kernel: Callable[[int], Initializer]
    bias: Callable[[int], Initializer]


# "he_normal" is what the reference code writes down, "pytorch" what it actually runs with: its
# initialisation loop never reaches a convolution (golden/README.md, difference 15).
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


def initialization(name: str) -> Initialization:
    """Looks an initialisation up by name; an unknown one is a ValueError that lists the names."""
    if name not in INITIALIZATIONS:
        raise unknown_name("initialization", name, INITIALIZATIONS)
    return INITIALIZATIONS[name]


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but that of channels, with PyTorch's statistics.

    The batch is normalised with its biased variance; the running variance moves towards the
    unbiased one, n/(n-1) larger (n = elements per channel), by 0.1 a step. Epsilon is 1e-5.
    Computed in float32 whatever the type of the map, which the result has again. Not Flax's own
    class, which has a program compiled for every number of channels (`docs/results/cpu.md`).

    Attributes:
      num_features: C, channels.
      scale, bias: [C], parameters.
      mean, var: [C], the running statistics.
      use_running_average: whether they, and not a batch's, normalise: `eval()` and `train()`.
      folds: whether, in inference mode, the convolution before it takes it over (`ConvNorm`): one
        pass over the map less, and in bfloat16 one rounding. It is done anew in every call, which a
        large batch does not notice and a single image does. False unless set, as phase II does for
        its frozen backbone.
      layout: of the maps; in any other array channels are last.
    """

    layout = Layout.IMAGES_FIRST
    momentum, epsilon = 0.9, 1e-5

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        self.num_features, self.use_running_average, self.folds = num_features, False, False
        shape, ones, zeros = (num_features,), constant(1.0), constant(0.0)
        key = rngs.params()
        self.scale, self.var = nnx.Param(ones(key, shape)), nnx.BatchStat(ones(key, shape))
        key = rngs.params()
        self.bias, self.mean = nnx.Param(zeros(key, shape)), nnx.BatchStat(zeros(key, shape))

    def taken_over(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The kernel [..., C] and bias [C] of a convolution without bias that does both in one."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return kernel * factor[None, None, None], self.bias[...] - self.mean[...] * factor

    @property
    def is_taken_over(self) -> bool:
        """Whether the convolution before it is to do its work."""
        return self.folds and self.use_running_average

    def __call__(self, x: jax.Array, *, relu: bool = False) -> jax.Array:
        """Normalises x [..., C] or a map, then max(., 0) if asked for; training moves moments."""
        return normalize_together([self], x, relu=relu)[0]

    def follow(self, mean: jax.Array, variance: jax.Array) -> None:
        """Moves the running statistics towards those of a batch, [C] each."""
        for running, found in ((self.mean, mean), (self.var, variance)):
            moved = _moved(running[...], found, self.momentum)
            # Not running[...] = moved: Flax then asks for the sharding of what is being traced, for
            # whose absence JAX writes a text that takes longer the more was traced before, so that
            # tracing takes time with the square of the network's depth.
            running.set_value(moved)


@functools.partial(jax.jit, static_argnums=2, inline=True)  # traced once per shape
def _moved(running: jax.Array, found: jax.Array, momentum: float) -> jax.Array:
    return momentum * running + (1 - momentum) * found


def normalize_together(
    norms: Sequence[BatchNorm], x: jax.Array, *, relu: bool = False
) -> list[jax.Array]:
    """What each of several normalisations makes of its channels of one map, in one pass over it.

    Args:
      norms: all in one mode; in train mode their running statistics move.
      x: [..., C] or a map in their layout, their channels one after the other.
      relu: whether max(., 0) follows.

    Returns:
      For each the same shape with its own channels.
    """
    channels = norms[0].layout.channels
    ends = list(itertools.accumulate(norm.num_features for norm in norms))[:-1]

    def joined(name: str) -> jax.Array:
        return jnp.concatenate([getattr(norm, name)[...] for norm in norms])

    affine = (joined("scale"), joined("bias"), norms[0].epsilon)
    if norms[0].use_running_average:
        y = normalize_by(x, (joined("mean"), joined("var")), *affine, channels)
        return jnp.split(jax.nn.relu(y) if relu else y, ends, axis=channels)
    y, *moments = batch_normalize(x, *affine, relu, channels)
    elements = x.size // x.shape[channels]
    moments[1] *= elements / max(elements - 1, 1)
    for norm, mean, variance in zip(norms, *(jnp.split(v, ends) for v in moments), strict=True):
        norm.follow(mean, variance)
    return jnp.split(y, ends, axis=channels)


class Conv(nnx.Conv):
    """A square convolution padded k // 2 on every side; see `imta_jax.nn.convolution`.

    Attributes:
      layout: of the maps.
    """

    layout = Layout.IMAGES_FIRST

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, H, W, inputs] to [N, ceil(H/stride), ceil(W/stride), outputs]."""
        return self.with_kernel(x, self.kernel[...], None if self.bias is None else self.bias[...])

    def with_kernel(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Itself with another kernel [k, k, inputs, outputs] and bias [outputs]."""
        y = convolve(x, kernel, self.strides, self.layout)
        return y if bias is None else y + self.layout.per_channel(bias.astype(y.dtype))


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    use_bias: bool = False,
    init: Initialization,
    rngs: nnx.Rngs,
) -> Conv:
    """A `Conv` with the starting values of `init`."""
    fan_in, fan_out = kernel * kernel * inputs, kernel * kernel * outputs
    return Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=use_bias,
        kernel_init=init.conv_kernel(fan_in, fan_out),
        bias_init=init.bias(fan_in),
        rngs=rngs,
    )


def linear(inputs: int, outputs: int, *, init: Initialization, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with bias, [N, inputs] -> [N, outputs]."""
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=init.linear_kernel(inputs),
        bias_init=init.bias(inputs),
        rngs=rngs,
    )


class ConvNorm(nnx.Module):
    """Convolution and batch normalisation, in one where the latter is taken over.

    Attributes:
      relu: whether max(., 0) follows.
    """

    relu = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        use_bias: bool = False,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(inputs, outputs, kernel, stride, use_bias=use_bias, init=init, rngs=rngs)
        self.norm = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, H, W, inputs] to [N, ceil(H/stride), ceil(W/stride), outputs]."""
        if not self.norm.is_taken_over or self.conv.bias is not None:
            return self.norm(self.conv(x), relu=self.relu)
        y = self.conv.with_kernel(x, *self.norm.taken_over(self.conv.kernel[...]))
        return jax.nn.relu(y) if self.relu else y


class ConvBNReLU(ConvNorm):
    """Convolution, batch normalisation, ReLU: the unit MSDNet is built from."""

    relu = True
