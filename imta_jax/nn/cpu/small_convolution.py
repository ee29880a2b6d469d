"""Convolutions of few channels or few pixels, in forms that keep a CPU's vector units busy."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

Gradients = tuple[jax.Array, jax.Array]
Convolution = Callable[..., jax.Array]  # (x, kernel, stride=...) -> y

# Floats per CPU vector: with fewer channels most of a vector is idle.
_VECTOR_WIDTH = 8
# Strided convolutions of maps with at most so many pixels are computed from patches.
_FEW_PIXELS = 16


def has_few_pixels(x: jax.Array, stride: int) -> bool:
    """Whether `convolve_patches` is the faster form."""
    return stride == 2 and x.shape[1] * x.shape[2] <= _FEW_PIXELS


def has_few_channels(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether `convolve_small` supports the shapes and is the faster form on a CPU."""
    size, _, inputs, outputs = kernel.shape
    narrow = inputs < _VECTOR_WIDTH or (stride == 1 and outputs < _VECTOR_WIDTH)
    return size == 3 and narrow and x.shape[2] % 2 == 0


def convolve_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [N, H, W, I] at stride 2 as one matrix product over patches.

    XLA's input gradient of 4x4x128 -> 2x2x128 at batch 64 takes 17 ms on a CPU core; this form
    takes 2 ms.
    """
    k = kernel.shape[0]
    rows, columns = (-(-side // 2) for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    patches = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(k)
        for j in range(k)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_small(
    x: jax.Array, kernel: jax.Array, stride: int, other_devices: Convolution
) -> jax.Array:
    """A convolution of few channels or pixels: a form for CPUs, and one for `other_devices`.

    GPUs compute few pixels as CPUs do. With `other_devices`, XLA would copy all parameters into
    another layout in every dispatch.
    """
    return jax.lax.platform_dependent(x, kernel, **_forms(x, stride, other_devices))


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, other_devices: Convolution
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_small(x, kernel, stride, other_devices), (x, kernel)


def _backward(
    stride: int,
    other_devices: Convolution,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> Gradients:
    # The platform is chosen again here: the two forms would store different residuals.
    def gradients_of(form: Callable[..., jax.Array]) -> Callable[..., Gradients]:
        return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)

    forms = _forms(residuals[0], stride, other_devices)
    gradients = {platform: gradients_of(form) for platform, form in forms.items()}
    return jax.lax.platform_dependent(*residuals, gradient, **gradients)


convolve_small.defvjp(_forward, _backward)


def _forms(
    x: jax.Array, stride: int, other_devices: Convolution
) -> dict[str, Callable[..., jax.Array]]:
    """The form of each platform."""
    form = functools.partial(other_devices, stride=stride)
    return {
        "cpu": _convolve_column_pairs if stride == 1 else convolve_patches,
        "tpu": form,
        "default": convolve_patches if has_few_pixels(x, stride) else form,
    }


def _convolve_column_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves 3x3 with each pair of neighboring columns as one column of twice the channels.

    A pair of output columns reads four input columns: a 3x1 convolution from [N, H, W/2, 4 I] to
    [N, H, W/2, 2 O]. A third of the products are with zeros; the time still halves.
    """
    n, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    pairs = x.reshape(n, height, width // 2, 2 * inputs)
    before = jnp.pad(pairs[:, :, :-1, inputs:], ((0, 0), (0, 0), (1, 0), (0, 0)))
    after = jnp.pad(pairs[:, :, 1:, :inputs], ((0, 0), (0, 0), (0, 1), (0, 0)))
    four_columns = jnp.concatenate([before, pairs, after], axis=-1)
    # [3, 4 columns, I, 2 columns, O]: the second output column reads one input column further.
    shifted = jnp.stack(
        [
            jnp.pad(kernel, ((0, 0), (0, 1), (0, 0), (0, 0))),
            jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0))),
        ],
        axis=3,
    )
    y = jax.lax.conv_general_dilated(
        four_columns,
        shifted.reshape(3, 1, 4 * inputs, 2 * outputs),
        (1, 1),
        ((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(n, height, width, outputs)
