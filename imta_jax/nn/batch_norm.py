"""Batch normalization: the module, and the functions that it calls.

The custom gradient makes two passes over the feature map where JAX's own makes three and stores
intermediate maps. It takes the mask of a following ReLU from the output, which the next layer
stores anyway. A phase-I step takes 10-13% less time with it (`docs/results/cpu.md`).

A batch can be normalized in groups of consecutive images, each with its own statistics. Groups that
do not cross devices need no communication in the forward pass.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from imta_jax.errors import InputError
from imta_jax.nn.grouped_batch_norm import Groups, normalize_groups
from imta_jax.nn.initialization import constant

# TPUs store results of at most so many pixels in float32. Otherwise XLA stores those that only
# convolutions read in bfloat16, which takes longer, and computes them again for the mask of the
# ReLU. Larger maps are bound by memory (`docs/results/accelerators_log.md`).
_SMALL_PIXELS = 32 * 32


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the channels, with PyTorch's running statistics.

    In training mode the batch is normalized with its biased variance. The running variance moves
    by 0.1 per step towards the unbiased variance, which is n/(n-1) larger (n = elements per
    channel). Epsilon is 1e-5. Statistics are computed in float32; the output has the input's dtype.

    Flax's `nnx.BatchNorm` uses the biased running variance and compiles one program per channel
    count.

    Attributes:
      num_features: number of channels C.
      scale: parameter [C].
      bias: parameter [C].
      mean: running mean [C].
      var: running variance [C].
      use_running_average: whether the running statistics normalize. Set by `train()` and `eval()`.
      statistics_groups: groups of consecutive images with statistics of their own in training mode.
        The running statistics move towards the mean over the groups. See `set_statistics_groups`.
      mesh: the devices, if each has one group; None otherwise.
    """

    momentum, epsilon = 0.9, 1e-5
    statistics_groups = 1
    mesh: Mesh | None = None

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        self.num_features, self.use_running_average = num_features, False
        shape, ones, zeros = (num_features,), constant(1.0), constant(0.0)
        key = rngs.params()
        self.scale, self.var = nnx.Param(ones(key, shape)), nnx.BatchStat(ones(key, shape))
        key = rngs.params()
        self.bias, self.mean = nnx.Param(zeros(key, shape)), nnx.BatchStat(zeros(key, shape))

    def __call__(self, x: Float[Array, "*N C"], *, relu: bool = False) -> Float[Array, "*N C"]:
        """Normalizes x, then applies ReLU if `relu`; updates the statistics in training mode."""
        affine = (self.scale[...], self.bias[...], self.epsilon)
        if self.use_running_average:
            y = normalize_with(x, (self.mean[...], self.var[...]), *affine)
            return jax.nn.relu(y) if relu else y
        groups, mesh = self.statistics_groups, self.mesh
        y, mean, variance = batch_normalize(x, *affine, relu, groups=groups, mesh=mesh)
        count = x.size // self.num_features // groups
        self.update_statistics(mean, unbiased_variance(variance, count))
        return y

    def update_statistics(self, mean: Float[Array, " C"], variance: Float[Array, " C"]) -> None:
        """Moves the running statistics towards a batch's mean and unbiased variance."""
        for running, batch in ((self.mean, mean), (self.var, variance)):
            # `running[...] = value` asks JAX for the sharding of the traced value. JAX then formats
            # an error text whose cost grows with the length of the trace, so that tracing time
            # grows quadratically with the depth of the network.
            running.set_value(_moving_average(running[...], batch, self.momentum))


def set_statistics_groups(module: nnx.Module, groups: int, mesh: Mesh | None = None) -> None:
    """Sets the groups of every `BatchNorm` in a module.

    Args:
      module: changed in place.
      groups: number of groups of a batch.
      mesh: the devices over which batches are sharded.

    Raises:
      InputError: `groups` is above 1 and a layer in training mode is Flax's `BatchNorm`, which has
        no groups.
    """
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, BatchNorm) and layer.statistics_groups != groups:
            layer.statistics_groups = groups
            layer.mesh = mesh if mesh is not None and 1 < groups == mesh.size else None
        elif isinstance(layer, nnx.BatchNorm) and groups > 1 and not layer.use_running_average:
            raise InputError(
                f"{'.'.join(map(str, path))} is a flax.nnx.BatchNorm, which computes statistics of"
                ' the batch over all devices; set batch_statistics="global", or use'
                " imta_jax.nn.batch_norm.BatchNorm"
            )


def unbiased_variance(variance: Float[Array, " C"], count: int) -> Float[Array, " C"]:
    """The biased variance of `count` elements, multiplied by count / (count - 1)."""
    return variance * (count / max(count - 1, 1))


@functools.partial(jax.jit, static_argnums=2, inline=True)  # traced once per shape
def _moving_average(running: jax.Array, batch: jax.Array, momentum: float) -> jax.Array:
    return momentum * running + (1 - momentum) * batch


@functools.partial(jax.jit, static_argnums=(3, 4, 5), static_argnames=("groups", "mesh"))
def batch_normalize(
    x: jax.Array,
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
    relu: bool = False,
    channel_axis: int = -1,
    *,
    groups: int = 1,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes x with its own mean and variance over all axes but the channels.

    Computed in float32 or wider, whatever the dtype of x. No gradient flows through the returned
    mean and variance.

    Args:
      x: array of any shape with C channels.
      scale: factor per channel.
      bias: offset per channel.
      epsilon: added to the variance.
      relu: whether ReLU follows.
      channel_axis: axis of the channels, the first or the last. The images are on the other one.
      groups: groups of consecutive images with statistics of their own.
      mesh: the devices, if each has one group and the images are on the first axis.

    Returns:
      (y, mean, variance): y has the shape and dtype of x; mean and biased variance are [C], means
      over the groups.
    """
    if mesh is not None:
        return _normalize_per_device(x, scale, bias, epsilon, relu, mesh)
    if groups == 1:
        return _normalize(x, scale, bias, epsilon, relu, channel_axis)
    split = Groups(groups, channels_first=channel_axis % x.ndim == 0 and x.ndim > 1)
    grouped: tuple[jax.Array, ...] = normalize_groups(x, scale, bias, epsilon, relu, split)
    y, mean, variance = grouped
    return y, mean.mean(axis=0), variance.mean(axis=0)


def _normalize_per_device(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Like `batch_normalize`; each device normalizes its images without the others."""

    def local(
        x: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, mean, variance = batch_normalize(x, scale, bias, epsilon, relu)
        return y, mean[None], variance[None]

    sharded, replicated = PartitionSpec(mesh.axis_names), PartitionSpec()
    y, mean, variance = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(sharded, replicated, replicated),
        out_specs=(sharded, sharded, sharded),
        check_vma=False,
    )(x, scale, bias)
    return y, mean.mean(axis=0), variance.mean(axis=0)


def normalize_with(
    x: jax.Array,
    statistics: tuple[Float[Array, " C"], Float[Array, " C"]],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    epsilon: float,
    channel_axis: int = -1,
) -> jax.Array:
    """Returns (x - mean) / sqrt(variance + epsilon) * scale + bias, with (mean, variance) given."""
    mean, variance = statistics
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    broadcast = _broadcaster(channel_axis, x.ndim)
    y = at_least_float32(x) * broadcast(factor) + broadcast(bias - mean * factor)
    return y.astype(x.dtype)


# Input, output if a ReLU follows, mean, variance and scale.
NormalizationResiduals = tuple[jax.Array, jax.Array | None, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool, channel_axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return forward_pass(x, scale, bias, epsilon, relu, channel_axis)[0]


def forward_pass(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, relu: bool, channel_axis: int
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], NormalizationResiduals]:
    """The result of `batch_normalize`, and what the backward pass needs."""
    wide, axes = at_least_float32(x), _other_axes(channel_axis, x.ndim)
    # E[x^2] - E[x]^2 needs one pass, as in Flax. Rounding may take it below 0. It loses three
    # digits where the mean is 100 times the deviation, which feature maps do not reach.
    mean, mean_square = jnp.mean(wide, axes), jnp.mean(wide * wide, axes)
    variance = jnp.maximum(mean_square - mean * mean, 0)
    y = normalize_with(x, (mean, variance), scale, bias, epsilon, channel_axis)
    y = jax.nn.relu(y) if relu else y
    if channel_axis == -1 and math.prod(x.shape[1:-1]) <= _SMALL_PIXELS:  # CHWN is for CPUs
        y = jax.lax.platform_dependent(y, tpu=jax.lax.optimization_barrier, default=lambda y: y)
    return (y, mean, variance), (x, y if relu else None, mean, variance, scale)


def backward_pass(
    epsilon: float,
    relu: bool,
    channel_axis: int,
    residuals: NormalizationResiduals,
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x, scale and bias; no gradient of the statistics."""
    x, y = residuals[:2]
    wide, gradient = at_least_float32(x), at_least_float32(cotangents[0])
    gradient = gradient if y is None else jnp.where(y > 0, gradient, 0)
    axes = _other_axes(channel_axis, x.ndim)
    sums = jnp.sum(gradient, axes), jnp.sum(gradient * wide, axes)
    return backward_from_sums(epsilon, channel_axis, residuals, gradient, *sums)


def backward_from_sums(
    epsilon: float,
    channel_axis: int,
    residuals: NormalizationResiduals,
    gradient: jax.Array,
    bias_gradient: Float[Array, " C"],
    products: Float[Array, " C"],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of x, scale and bias.

    Args:
      epsilon: see `batch_normalize`.
      channel_axis: see `batch_normalize`.
      residuals: second result of `forward_pass`.
      gradient: gradient of the result, masked by the ReLU.
      bias_gradient: sums of `gradient`.
      products: sums of `gradient` times x.
    """
    x, _, mean, variance, scale = residuals
    count = x.size // x.shape[channel_axis]
    broadcast = _broadcaster(channel_axis, x.ndim)
    inverse = jax.lax.rsqrt(variance + epsilon)
    scale_gradient = inverse * (products - mean * bias_gradient)
    # With g the gradient and n the normalized x: scale * inverse * (g - mean(g) - n * mean(g * n)),
    # written as a * g + b * x + c.
    a = scale * inverse
    b = -a * inverse * scale_gradient / count
    c = -a * bias_gradient / count - b * mean
    wide = at_least_float32(x)
    x_gradient = broadcast(a) * gradient + broadcast(b) * wide + broadcast(c)
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


_normalize.defvjp(forward_pass, backward_pass)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns x in float32, or in its own dtype if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _other_axes(channel_axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis != channel_axis % ndim)


def _broadcaster(channel_axis: int, ndim: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that reshapes values [C] to broadcast over an array of `ndim` axes."""
    shape = [-1 if axis == channel_axis % ndim else 1 for axis in range(ndim)]
    return lambda values: values.reshape(shape)
