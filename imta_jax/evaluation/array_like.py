"""The type of arguments that are converted by `numpy.asarray`."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np


@runtime_checkable
class SupportsArray(Protocol):
    """An array of any library: NumPy, JAX, PyTorch, pandas."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The values as a NumPy array."""
        ...


# Like numpy.typing.ArrayLike, which beartype does not accept for tuples and integers.
ArrayLike: TypeAlias = SupportsArray | Sequence[Any] | float | int
