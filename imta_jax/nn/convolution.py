"""Square convolutions of feature maps [N, H, W, C].

`convolve` is XLA's convolution, except where a matrix product or a form of `nn.cpu` computes the
same sums faster (`docs/results/cpu.md`). The cost counter (`models.costs`) counts a call of
`convolve` by its shapes, so costs do not depend on the form.

With bfloat16 maps and float32 kernels, the gradient of a kernel is computed in float32, so that
devices add it up in float32. TPUs accumulate products in float32 anyway.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imta_jax.nn.cpu import small_convolution

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.jit, static_argnames="stride")
def convolve(
    x: Float[Array, "N H W I"], kernel: Float[Array, "k k I O"], stride: int = 1
) -> Float[Array, "N h w O"]:
    """Convolves x with padding k // 2 on every side; "SAME" padding differs at stride 2.

    Args:
      x: feature maps.
      kernel: k is odd; cast to the dtype of x. Its gradient has the kernel's own dtype.
      stride: 1 or 2.

    Returns:
      Feature maps with h = ceil(H / stride) and w = ceil(W / stride), in the dtype of x.
    """
    with jax.named_scope(f"{kernel.shape[0]}x{kernel.shape[0]}_stride_{stride}"):  # for profilers
        if jnp.finfo(kernel.dtype).bits > jnp.finfo(x.dtype).bits:
            return _convolve_narrow(x, kernel, stride)
        return _convolve(x, kernel.astype(x.dtype), stride)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution of maps and a kernel of one dtype, in the form for the shapes."""
    if kernel.shape[0] == 1 and stride == 1:
        return _matrix_product(x, kernel)
    few_pixels = small_convolution.has_few_pixels(x, stride)
    if few_pixels or small_convolution.has_few_channels(x, kernel, stride):
        return small_convolution.convolve_small(x, kernel, stride, xla_convolution)
    return xla_convolution(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_narrow(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution in the dtype of x; the kernel's gradient is in the dtype of the kernel."""
    return _convolve(x, kernel.astype(x.dtype), stride)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve_narrow(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    narrow = kernel.astype(x.dtype)
    (x_gradient,) = jax.vjp(lambda maps: _convolve(maps, narrow, stride), x)[1](gradient)
    return x_gradient, _kernel_gradient(x, gradient, kernel, stride)


_convolve_narrow.defvjp(_forward, _backward)


def _kernel_gradient(
    x: jax.Array, gradient: jax.Array, kernel: jax.Array, stride: int
) -> jax.Array:
    """The gradient of the kernel in its dtype: a convolution over the pixels of all images."""
    size, half = kernel.shape[0], kernel.shape[0] // 2
    padding = [
        (half, size - half + (gradient.shape[axis] - 1) * stride - x.shape[axis]) for axis in (1, 2)
    ]
    return jax.lax.conv_general_dilated(
        x,
        gradient,
        (1, 1),
        padding,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=kernel.dtype,
    )


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias that broadcasts over y, in the wider dtype. The result has the dtype of y."""
    return (y + bias).astype(y.dtype)


def xla_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same convolution as one XLA operation."""
    half = kernel.shape[0] // 2
    padding = [(half, half), (half, half)]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


def _matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution; as an XLA convolution it takes 2 to 4 times as long on a CPU."""
    pixels = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return pixels.reshape(*x.shape[:-1], kernel.shape[-1])
