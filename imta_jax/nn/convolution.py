"""How convolutions are computed: the same sums, in the form that compilers turn into fast code.

Networks of many narrow convolutions, as MSDNet's, leave most of a processor idle when each is
handed to XLA as it is. The forms here were chosen by measurement; `docs/results/cpu.md` has the
numbers. Every form is a sum of the same products, so costs do not depend on it:
`imta_jax.evaluation.exit_costs` counts a call of `convolve` by its shapes, not by what is inside.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imta_jax.nn.cpu.channels_first import convolve_channels_first
from imta_jax.nn.cpu.layout import Layout

Form = Callable[[jax.Array, jax.Array], jax.Array]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Numbers that a processor computes at a time: with fewer channels most of it idles.
_VECTOR = 8
# Maps of at most so many pixels are read as patches when they are strided.
_FEW_PIXELS = 16


@functools.partial(jax.jit, static_argnames=("stride", "layout"))
def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, layout: Layout = Layout.IMAGES_FIRST
) -> jax.Array:
    """Square convolution, padded by k // 2 zeros on every side ('SAME' differs at stride 2).

    Args:
      x: [N, H, W, I], or [I, H, W, N] channels first.
      kernel: [k, k, I, O], k odd; computed in the type of x.
      stride: 1 or 2.
      layout: of x and of the result.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), O], or its channels first.
    """
    with jax.named_scope(f"{kernel.shape[0]}x{kernel.shape[1]}_stride_{stride}"):  # for profilers
        form = convolve_channels_first if layout is Layout.CHANNELS_FIRST else _images_first
        return form(x, kernel.astype(x.dtype), stride)


def _images_first(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    size, _, inputs, outputs = kernel.shape
    if size == 1 and stride == 1:
        return _as_matrix_product(x, kernel)
    if stride == 2 and x.shape[1] * x.shape[2] <= _FEW_PIXELS:
        return _of_patches(x, kernel)
    narrow = inputs < _VECTOR or (stride == 1 and outputs < _VECTOR)
    if size == 3 and narrow and x.shape[2] % 2 == 0:
        return _narrow(x, kernel, stride)
    return _plain(x, kernel, stride)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT
    )


def _as_matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution over rows of pixels: as a convolution it takes 2 to 4 times as long."""
    rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def _of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product over patches, at stride 2.

    XLA's input gradient of that convolution took 17 ms on a processor core where this takes 2 ms
    (batch 64, 4x4x128 to 2x2x128).
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 3x3 convolution of few channels: on processors in another form."""
    on_processors, elsewhere = _narrow_forms(stride)
    return jax.lax.platform_dependent(x, kernel, cpu=on_processors, default=elsewhere)


def _narrow_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _narrow(x, kernel, stride), (x, kernel)


def _narrow_backward(
    stride: int, inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Chosen per platform here too: what the branches keep for the gradient could not be shared.
    def backward_of(form: Form) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)

    on_processors, elsewhere = map(backward_of, _narrow_forms(stride))
    return jax.lax.platform_dependent(*inputs, gradient, cpu=on_processors, default=elsewhere)


_narrow.defvjp(_narrow_forward, _narrow_backward)


def _narrow_forms(stride: int) -> tuple[Form, Form]:
    """For processors, and for everything else."""
    return (
        _of_column_pairs if stride == 1 else _of_patches,
        functools.partial(_plain, stride=stride),
    )


def _of_column_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves 3x3 with two neighbouring columns as one of twice the channels.

    A pair of output columns sees four input columns, so a third of the products are with zeros,
    and still the time halves: [N, H, W/2, 4 I] with a 3x1 kernel to [N, H, W/2, 2 O].
    """
    n, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    pairs = x.reshape(n, height, width // 2, 2 * inputs)
    before = jnp.pad(pairs[:, :, :-1, inputs:], ((0, 0), (0, 0), (1, 0), (0, 0)))
    after = jnp.pad(pairs[:, :, 1:, :inputs], ((0, 0), (0, 0), (0, 1), (0, 0)))
    seen = jnp.concatenate([before, pairs, after], axis=-1)
    # [3, 4 columns, I, 2 columns, O]: the second column sees one input column further.
    shifted = jnp.stack(
        [
            jnp.pad(kernel, ((0, 0), (0, 1), (0, 0), (0, 0))),
            jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0))),
        ],
        axis=3,
    )
    y = jax.lax.conv_general_dilated(
        seen,
        shifted.reshape(3, 1, 4 * inputs, 2 * outputs),
        (1, 1),
        ((1, 1), (0, 0)),
        dimension_numbers=_LAYOUT,
    )
    return y.reshape(n, height, width, outputs)
