"""Convolutions of CHWN maps as matrix products, with written-out gradients.

A 3x3 convolution concatenates the map shifted by one column to either side (3 I rows), multiplies
once (3 O rows, one group per kernel row), and adds the three groups shifted by one row. That copies
a third of what patches of nine neighbors would. The gradients have the same form and share the
shifted map. JAX's own gradients are sums of padded maps, which take several times as long on a CPU
(`docs/results/cpu.md`).
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ROW_AXIS, _COLUMN_AXIS = 1, 2
_DIMENSIONS = ("CHWN", "HWIO", "CHWN")
AnyArray = jax.Array | np.ndarray
Residuals = tuple[jax.Array, jax.Array]
# How a convolution is computed. See `form_of`.
Form = Literal["one_by_one", "three_by_three", "strided", "patches", "xla"]


@functools.partial(jax.jit, static_argnames="stride")
def convolve_channels_first(
    x: Float[Array, "I H W N"], kernel: Float[Array, "k k I O"], stride: int = 1
) -> Float[Array, "O h w N"]:
    """Like `nn.convolution.convolve`, for CHWN maps; sums are in float32 or wider."""
    kernel = kernel.astype(x.dtype)
    size = kernel.shape[0]
    form = form_of(kernel, stride)
    with jax.named_scope(f"{size}x{size}_stride_{stride}"):  # for profilers
        if form == "one_by_one":
            return _one_by_one(x, kernel[0, 0])
        if form == "strided":
            return _strided(x, kernel)
        if form == "three_by_three":
            return _three_by_three(x, kernel)
        return convolve_packed(x, pack_kernel(kernel, form), form, stride)


def form_of(kernel: AnyArray, stride: int) -> Form:
    """The form in which a convolution with a kernel [k, k, I, O] is computed."""
    size, _, inputs, outputs = kernel.shape
    if size == 1 and stride == 1:
        return "one_by_one"
    if size != 3:
        return "xla"
    if stride == 2:
        return "strided"
    # The form that writes fewer intermediate rows: 3 I + 4 O, or 9 I + O from patches.
    return "patches" if 2 * inputs < outputs else "three_by_three"


def pack_kernel(kernel: AnyArray, form: Form) -> Any:
    """The matrix that a form multiplies with the map; the kernel [k, k, I, O] for the form "xla".

    Also takes NumPy arrays, and then returns one.
    """
    if form == "one_by_one":
        return kernel[0, 0].T
    if form == "patches":
        return kernel.transpose(3, 0, 1, 2).reshape(kernel.shape[3], -1)
    if form == "three_by_three":
        matrix = _as_matrix(kernel)
        return matrix.reshape(-1, matrix.shape[2])
    if form == "strided":
        matrix = _as_matrix(kernel)[np.array([1, 0, 2])]  # the row of even pixels first
        return matrix.reshape(-1, matrix.shape[2])
    return kernel


def convolve_packed(
    x: Float[Array, "I H W N"], packed: jax.Array, form: Form, stride: int
) -> Float[Array, "O h w N"]:
    """Like `convolve_channels_first`, with the result of `pack_kernel`; without a gradient rule."""
    if form == "one_by_one":
        return _product(packed, x).astype(x.dtype)
    if form == "patches":
        return _convolve_patches(x, packed)
    if form == "three_by_three":
        return _three_by_three_product(x, packed)
    if form == "strided":
        outputs = len(packed) // 3
        return _strided_product(x, packed[:outputs], packed[outputs:])
    half = packed.shape[0] // 2
    padding = [(half, half), (half, half)]
    return jax.lax.conv_general_dilated(
        x, packed, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


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


def _as_matrix(kernel: AnyArray) -> Any:
    """Reshapes a kernel [3, 3, I, O] to [3, O, 3 I]: one matrix per kernel row."""
    return kernel.transpose(0, 3, 1, 2).reshape(3, kernel.shape[3], -1)


def _as_kernel(matrix: jax.Array, like: jax.Array) -> jax.Array:
    """Inverse of `_as_matrix`, with the shape and dtype of `like`."""
    *_, inputs, outputs = like.shape
    return matrix.reshape(3, outputs, 3, inputs).transpose(0, 2, 3, 1).astype(like.dtype)


@jax.custom_vjp
def _three_by_three(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _three_by_three_product(x, pack_kernel(kernel, "three_by_three"))


def _three_by_three_product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """A 3x3 convolution with a matrix [3 O, 3 I], one group of rows per kernel row."""
    above, here, below = jnp.split(_product(matrix, _three_columns(x)), 3)
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
    return _strided_product(x, *_even_and_odd(_as_matrix(kernel)))


def _strided_product(x: jax.Array, even_matrix: jax.Array, odd_matrix: jax.Array) -> jax.Array:
    """A strided convolution with the matrices of `_even_and_odd`."""
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


def _convolve_patches(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """3x3 from few channels to many, such as the stem, as one product over all nine neighbors.

    The matrix is [O, 9 I].
    """
    columns = _three_columns(x)
    patches = jnp.concatenate(
        [_shifted(columns, 1, _ROW_AXIS), columns, _shifted(columns, -1, _ROW_AXIS)]
    )
    return _product(matrix, patches).astype(x.dtype)
