"""Precision of matrix products and convolutions of float32 maps.

| name | TPU | GPU with TF32 | CPU |
|---|---|---|---|
| "default" | one bfloat16 pass | TF32 | float32 |
| "high" | three bfloat16 passes | TF32 | float32 |
| "highest" | six bfloat16 passes | float32 | float32 |

"default" leaves JAX's own setting, `jax_default_matmul_precision`, in force.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from imta_jax.options import MatmulPrecision

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def with_matmul_precision(
    function: Callable[Parameters, Result], precision: MatmulPrecision
) -> Callable[Parameters, Result]:
    """Returns a function whose products have a precision, wherever it is traced.

    Args:
      function: a function that is to be compiled; the products of its derivatives are included.
      precision: one of the names above.
    """
    if precision == "default":
        return function

    @functools.wraps(function)
    def with_precision(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with jax.default_matmul_precision(precision):
            return function(*args, **kwargs)

    return with_precision
