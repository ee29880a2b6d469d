"""Convolution, linear layer, and convolution with batch normalization.

Convolutions pad k // 2 on every side, as PyTorch does; `padding="SAME"` differs at stride 2.
"""

from flax import nnx
from jaxtyping import Array, Float

from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.convolution import add_bias, convolve
from imta_jax.nn.initialization import Initialization


class Conv(nnx.Conv):
    """A square convolution, padded by k // 2; computed by `imta_jax.nn.convolution.convolve`."""

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Convolves x; the output has h = ceil(H / stride), w = ceil(W / stride)."""
        y = convolve(x, self.kernel[...], self.strides)
        if self.bias is None:
            return y
        return add_bias(y, self.bias[...].reshape(1, 1, 1, -1))


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
    """Returns a kernel x kernel convolution with parameters drawn from `init`."""
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
    """Returns a linear layer with bias, [N, inputs] -> [N, outputs]."""
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=init.linear_kernel(inputs),
        bias_init=init.bias(inputs),
        rngs=rngs,
    )


class ConvNorm(nnx.Module):
    """Convolution and batch normalization.

    Attributes:
      conv: the convolution.
      norm: the batch normalization.
      relu: whether ReLU follows.
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

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """Maps x to [N, ceil(H / stride), ceil(W / stride), outputs]."""
        return self.norm(self.conv(x), relu=self.relu)


class ConvBNReLU(ConvNorm):
    """Convolution, batch normalization and ReLU, the unit of MSDNet."""

    relu = True
