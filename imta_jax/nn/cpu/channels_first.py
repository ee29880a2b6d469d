"""Convolutions of maps [C, H, W, N], as matrix products with rows of pixels, and their gradients.

A 3x3 convolution reads its neighbours along one axis and adds them along the other: the map beside
itself shifted by a column to either side, 3 I rows, gives by one product the parts of three output
rows, 3 O rows, which are added, shifted by a row. That moves a third of what patches of nine
neighbours would, and the gradients are built the same way: what they read is shifted once for both.
Gradients are written out because JAX's own are made of additions of padded maps, several times as
slow on a processor (`docs/results/cpu.md`).
"""

import jax
import jax.numpy as jnp

_ROW, _COLUMN = 1, 2  # axes
_DIMENSIONS = ("CHWN", "HWIO", "CHWN")
Kept = tuple[jax.Array, jax.Array]


def convolve_channels_first(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """As `convolution.convolve`, of x [I, H, W, N] to [O, ceil(H / stride), ceil(W / stride), N].

    The kernel is of the type of x; products are summed in float32 at the least.
    """
    size, _, inputs, outputs = kernel.shape
    if size == 1 and stride == 1:
        return _one_by_one(x, kernel[0, 0])
    if size != 3:
        padding = [(size // 2,) * 2] * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
        )
    if stride == 2:
        return _strided(x, kernel)
    # Of what is written, 3 I + 4 O rows or 9 I + O, the less.
    return _of_patches(x, kernel) if 2 * inputs < outputs else _three_by_three(x, kernel)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """Matrix [R, C] times a map [C, H, W, N]."""
    found = jnp.matmul(matrix, _rows(x), preferred_element_type=_wide(x.dtype))
    return found.reshape(len(matrix), *x.shape[1:])


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of all rows of two maps, summed over pixels and images: [rows of a, rows of b]."""
    if len(a) < len(b):  # the other way around takes up to six times as long
        return _correlation(b, a).T
    return jnp.matmul(_rows(a), _rows(b).T, preferred_element_type=_wide(a.dtype))


def _rows(x: jax.Array) -> jax.Array:
    """[C, H W N]. With four axes XLA would transpose a map before it correlates it."""
    return x.reshape(len(x), -1)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _shifted(x: jax.Array, by: int, axis: int) -> jax.Array:
    """The map with its pixels moved towards higher indices; zeros come in."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


@jax.custom_vjp
def _one_by_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(kernel.T, x).astype(x.dtype)


def _one_by_one_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Kept]:
    return _one_by_one(x, kernel), (x, kernel)


def _one_by_one_backward(kept: Kept, gradient: jax.Array) -> Kept:
    x, kernel = kept
    to_kernel = _correlation(x, gradient)
    return _product(kernel, gradient).astype(x.dtype), to_kernel.astype(x.dtype)


_one_by_one.defvjp(_one_by_one_forward, _one_by_one_backward)


def _as_matrix(kernel: jax.Array) -> jax.Array:
    """[3, 3, I, O] as [3, O, 3 I]: per kernel row what its columns make of a row of pixels."""
    return kernel.transpose(0, 3, 1, 2).reshape(3, kernel.shape[3], -1)


def _as_kernel(matrix: jax.Array, like: jax.Array) -> jax.Array:
    """Back from [3, O, 3 I]."""
    *_, inputs, outputs = like.shape
    return matrix.reshape(3, outputs, 3, inputs).transpose(0, 2, 3, 1).astype(like.dtype)


@jax.custom_vjp
def _three_by_three(x: jax.Array, kernel: jax.Array) -> jax.Array:
    matrix = _as_matrix(kernel)
    parts = _product(matrix.reshape(-1, matrix.shape[2]), _seen_columns(x))
    above, here, below = jnp.split(parts, 3)
    return (_shifted(above, 1, _ROW) + here + _shifted(below, -1, _ROW)).astype(x.dtype)


def _seen_columns(x: jax.Array) -> jax.Array:
    """The column before, the same and the one after, [3 I, H, W, N]."""
    return jnp.concatenate([_shifted(x, 1, _COLUMN), x, _shifted(x, -1, _COLUMN)])


def _three_by_three_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Kept]:
    return _three_by_three(x, kernel), (x, kernel)


def _three_by_three_backward(kept: Kept, gradient: jax.Array) -> Kept:
    x, kernel = kept
    matrix = _as_matrix(kernel)
    # The gradients of the three parts.
    parts = [_shifted(gradient, -1, _ROW), gradient, _shifted(gradient, 1, _ROW)]
    of_parts = jnp.concatenate(parts)
    to_kernel = _correlation(of_parts, _seen_columns(x)).reshape(matrix.shape)
    to_seen = _product(matrix.reshape(-1, matrix.shape[2]).T, of_parts)
    before, here, after = jnp.split(to_seen, 3)
    to_x = _shifted(before, -1, _COLUMN) + here + _shifted(after, 1, _COLUMN)
    return to_x.astype(x.dtype), _as_kernel(to_kernel, kernel)


_three_by_three.defvjp(_three_by_three_forward, _three_by_three_backward)


def _seen_halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of even and of odd rows the columns that an output at stride 2 sees, [3 I, H/2, W/2, N]."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[_ROW] % 2), (0, x.shape[_COLUMN] % 2), (0, 0)))

    def seen(rows: jax.Array) -> jax.Array:
        even, odd = rows[:, :, ::2], rows[:, :, 1::2]
        return jnp.concatenate([_shifted(odd, 1, _COLUMN), even, odd])

    return seen(x[:, ::2]), seen(x[:, 1::2])


def _interleaved(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """Along an axis in turn the one and the other."""
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _halves(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of `_as_matrix` what is for even rows, [O, 3 I], and for odd ones, [2 O, 3 I]."""
    return matrix[1], matrix[::2].reshape(-1, matrix.shape[2])


@jax.custom_vjp
def _strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride 2: an output reads the even row of its place and the odd ones around it."""
    of_even, of_odd = _halves(_as_matrix(kernel))
    even, odd = _seen_halves(x)
    above, below = jnp.split(_product(of_odd, odd), 2)
    return (_shifted(above, 1, _ROW) + _product(of_even, even) + below).astype(x.dtype)


def _strided_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Kept]:
    return _strided(x, kernel), (x, kernel)


def _strided_backward(kept: Kept, gradient: jax.Array) -> Kept:
    x, kernel = kept
    of_even, of_odd = _halves(_as_matrix(kernel))
    even, odd = _seen_halves(x)
    both = jnp.concatenate([_shifted(gradient, -1, _ROW), gradient])
    above, below = jnp.split(_correlation(both, odd), 2)
    to_kernel = jnp.stack([above, _correlation(gradient, even), below])
    rows = []
    for matrix, to_parts in ((of_even, gradient), (of_odd, both)):
        before, here, after = jnp.split(_product(matrix.T, to_parts), 3)
        rows.append(_interleaved(here, after + _shifted(before, -1, _COLUMN), _COLUMN))
    to_x = _interleaved(*rows, _ROW)[:, : x.shape[_ROW], : x.shape[_COLUMN]]
    return to_x.astype(x.dtype), _as_kernel(to_kernel, kernel)


_strided.defvjp(_strided_forward, _strided_backward)


def _of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 of few channels into many, as the stem's: of all nine neighbours at once."""
    seen = _seen_columns(x)
    patches = jnp.concatenate([_shifted(seen, 1, _ROW), seen, _shifted(seen, -1, _ROW)])
    matrix = kernel.transpose(3, 0, 1, 2).reshape(kernel.shape[3], -1)
    return _product(matrix, patches).astype(x.dtype)
