"""Square convolutions of feature maps [N, H, W, C].

`convolve` is XLA's convolution, except where a matrix product or a form of `nn.cpu` computes the
same sums faster (`docs/results/cpu.md`). The cost counter (`models.costs`) counts a call of
`convolve` by its shapes, so costs do not depend on the form.
"""

import functools

import jax
from jaxtyping import Array, Float

from imta_jax.nn.cpu import small_convolution

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.jit, static_argnames="stride")
def convolve(
    x: Float[Array, "N H W I"], kernel: Float[Array, "k k I O"], stride: int = 1
) -> Float[Array, "N h w O"]:
    """Convolves x with padding k // 2 on every side; "SAME" padding differs at stride 2.

    Args:
      x: Feature maps.
      kernel: k is odd; cast to the dtype of x.
      stride: 1 or 2.

    Returns:
      Feature maps with h = ceil(H / stride) and w = ceil(W / stride), in the dtype of x.
    """
    kernel = kernel.astype(x.dtype)
    size = kernel.shape[0]
    with jax.named_scope(f"{size}x{size}_stride_{stride}"):  # for profilers
        if size == 1 and stride == 1:
            return _matrix_product(x, kernel)
        if small_convolution.has_few_pixels(x, stride):
            return small_convolution.convolve_patches(x, kernel)
        if small_convolution.has_few_channels(x, kernel, stride):
            return small_convolution.convolve_few_channels(x, kernel, stride, xla_convolution)
        return xla_convolution(x, kernel, stride)


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
