"""jaxtyping's array types, or stand-ins without shapes where it is not installed.

The comparison of threshold methods needs NumPy and SciPy only.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Float64, Int, Int8, Int32, Num
else:
    try:
        from jaxtyping import Bool, Float, Float32, Float64, Int, Int8, Int32, Num
    except ModuleNotFoundError:

        class _Unchecked:
            """`Float[np.ndarray, "N K"]` is `np.ndarray`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Float32 = Float64 = Int = Int8 = Int32 = Num = _Unchecked

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "Int8", "Int32", "Num"]
