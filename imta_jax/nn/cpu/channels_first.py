"""Convolutions of CHWN maps as matrix products, with written-out gradients.

A 3x3 convolution concatenates the map shifted by one column to either side (3 I rows), multiplies
once (3 O rows, one group per kernel row), and adds the three groups shifted by one row. That copies
a third of what patches of nine neighbors would. The gradients have the same form and share the
shifted map. JAX's own gradients are sums of padded maps, which take several times as long on a CPU
(`docs/results/cpu.md`).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_ROW_AXIS, _COLUMN_AXIS = 1, 2
_DIMENSIONS = ("CHWN", "HWIO", "CHWN")
Residuals = tuple[jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames="stride")
def convolve_channels_first(
    x: Float[Array, "I H W N"], kernel: Float[Array, "k k I O"], stride: int = 1
) -> Float[Array, "O h w N"]:
    """As `nn.convolution.convolve`, for CHWN maps; sums are in float32 or wider."""
    kernel = kernel.astype(x.dtype)
    size, _, inputs, outputs = kernel.shape
    with jax.named_scope(f"{size}x{size}_stride_{stride}"):  # for profilers
        if size == 1 and stride == 1:
            return _one_by_one(x, kernel[0, 0])
        if size != 3:
            half = size // 2
            padding = [(half, half), (half, half)]
            return jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
            )
        if stride == 2:
            return _strided(x, kernel)
        # The form that writes fewer intermediate rows: 3 I + 4 O, or 9 I + O from patches.
        if 2 * inputs < outputs:
            return _convolve_patches(x, kernel)
        return _three_by_three(x, kernel)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """Matrix [R, C] times a map [C, H, W, N]: [R, H, W, N]."""
    y = jnp.matmul(matrix, _flatten(x), preferred_element_type=_at_least_float32(x.dtype))
    return y.reshape(len(matrix), *x.shape[1:])


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums over pixels and images of the products of all channels of two maps: [A, B]."""
    if len(a) < len(b):  # the other order takes up to six times as long
        return _correlation(b, a).T
    dtype = _at_least_float32(a.dtype)
    return jnp.matmul(_flatten(a), _flatten(b).T, preferred_element_type=dtype)


def _flatten(x: jax.Array) -> jax.Array:
    """[C, H W N]. With four axes XLA would transpose the map before a correlation."""
    return x.reshape(len(x), -1)


def _at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _shifted(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves the pixels towards higher indices along an axis and pads with zeros."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


@jax.custom_vjp
def _one_by_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(kernel.T, x).astype(x.dtype)


def _one_by_one_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    return _one_by_one(x, kernel), (x, kernel)


def _one_by_one_backward(residuals: Residuals, gradient: jax.Array) -> Residuals:
    x, kernel = residuals
    kernel_gradient = _correlation(x, gradient)
    return _product(kernel, gradient).astype(x.dtype), kernel_gradient.astype(x.dtype)


_one_by_one.defvjp(_one_by_one_forward, _one_by_one_backward)


def _as_matrix(kernel: jax.Array) -> jax.Array:
    """Reshapes a kernel [3, 3, I, O] to [3, O, 3 I]: one matrix per kernel row."""
    return kernel.transpose(0, 3, 1, 2).reshape(3, kernel.shape[3], -1)


def _as_kernel(matrix: jax.Array, like: jax.Array) -> jax.Array:
    """Inverse of `_as_matrix`, with the shape and dtype of `like`."""
    *_, inputs, outputs = like.shape
    return matrix.reshape(3, outputs, 3, inputs).transpose(0, 2, 3, 1).astype(like.dtype)


@jax.custom_vjp
def _three_by_three(x: jax.Array, kernel: jax.Array) -> jax.Array:
    matrix = _as_matrix(kernel)
    groups = _product(matrix.reshape(-1, matrix.shape[2]), _three_columns(x))
    above, here, below = jnp.split(groups, 3)
    return (_shifted(above, 1, _ROW_AXIS) + here + _shifted(below, -1, _ROW_AXIS)).astype(x.dtype)


def _three_columns(x: jax.Array) -> jax.Array:
    """Each pixel with its left and right neighbors, [3 I, H, W, N]."""
    return jnp.concatenate([_shifted(x, 1, _COLUMN_AXIS), x, _shifted(x, -1, _COLUMN_AXIS)])


def _three_by_three_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    return _three_by_three(x, kernel), (x, kernel)


def _three_by_three_backward(residuals: Residuals, gradient: jax.Array) -> Residuals:
    x, kernel = residuals
    matrix = _as_matrix(kernel)
    groups = [_shifted(gradient, -1, _ROW_AXIS), gradient, _shifted(gradient, 1, _ROW_AXIS)]
    group_gradients = jnp.concatenate(groups)
    kernel_gradient = _correlation(group_gradients, _three_columns(x)).reshape(matrix.shape)
    column_gradients = _product(matrix.reshape(-1, matrix.shape[2]).T, group_gradients)
    before, here, after = jnp.split(column_gradients, 3)
    x_gradient = _shifted(before, -1, _COLUMN_AXIS) + here + _shifted(after, 1, _COLUMN_AXIS)
    return x_gradient.astype(x.dtype), _as_kernel(kernel_gradient, kernel)


_three_by_three.defvjp(_three_by_three_forward, _three_by_three_backward)


def _strided_columns(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The three columns that an output at stride 2 reads, of even and of odd rows.

    Each is [3 I, ceil(H/2), ceil(W/2), N].
    """
    x = jnp.pad(x, ((0, 0), (0, x.shape[_ROW_AXIS] % 2), (0, x.shape[_COLUMN_AXIS] % 2), (0, 0)))

    def three_columns(rows: jax.Array) -> jax.Array:
        even, odd = rows[:, :, ::2], rows[:, :, 1::2]
        return jnp.concatenate([_shifted(odd, 1, _COLUMN_AXIS), even, odd])

    return three_columns(x[:, ::2]), three_columns(x[:, 1::2])


def _interleaved(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """Alternates the entries of two arrays along an axis."""
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _even_and_odd(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The matrices of `_as_matrix` that read even rows, [O, 3 I], and odd rows, [2 O, 3 I]."""
    return matrix[1], matrix[::2].reshape(-1, matrix.shape[2])


@jax.custom_vjp
def _strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 at stride 2: output row r reads the even row 2r and the odd rows 2r - 1 and 2r + 1."""
    even_matrix, odd_matrix = _even_and_odd(_as_matrix(kernel))
    even, odd = _strided_columns(x)
    above, below = jnp.split(_product(odd_matrix, odd), 2)
    return (_shifted(above, 1, _ROW_AXIS) + _product(even_matrix, even) + below).astype(x.dtype)


def _strided_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Residuals]:
    return _strided(x, kernel), (x, kernel)


def _strided_backward(residuals: Residuals, gradient: jax.Array) -> Residuals:
    x, kernel = residuals
    even_matrix, odd_matrix = _even_and_odd(_as_matrix(kernel))
    even, odd = _strided_columns(x)
    odd_gradients = jnp.concatenate([_shifted(gradient, -1, _ROW_AXIS), gradient])
    above, below = jnp.split(_correlation(odd_gradients, odd), 2)
    kernel_gradient = jnp.stack([above, _correlation(gradient, even), below])
    rows = []
    for matrix, gradients in ((even_matrix, gradient), (odd_matrix, odd_gradients)):
        before, here, after = jnp.split(_product(matrix.T, gradients), 3)
        rows.append(_interleaved(here, after + _shifted(before, -1, _COLUMN_AXIS), _COLUMN_AXIS))
    x_gradient = _interleaved(rows[0], rows[1], _ROW_AXIS)[
        :, : x.shape[_ROW_AXIS], : x.shape[_COLUMN_AXIS]
    ]
    return x_gradient.astype(x.dtype), _as_kernel(kernel_gradient, kernel)


_strided.defvjp(_strided_forward, _strided_backward)


def _convolve_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 from few channels to many, such as the stem, as one product over all nine neighbors."""
    columns = _three_columns(x)
    patches = jnp.concatenate(
        [_shifted(columns, 1, _ROW_AXIS), columns, _shifted(columns, -1, _ROW_AXIS)]
    )
    matrix = kernel.transpose(3, 0, 1, 2).reshape(kernel.shape[3], -1)
    return _product(matrix, patches).astype(x.dtype)
