"""The dtype in which layers of other packages compute.

The package's own layers compute in the dtype of their input. Flax's layers with `dtype=None`
promote a bfloat16 input to the float32 of their parameters, so that the network would compute in
float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.models.classifier import Backbone, MultiExitClassifier, State
from imta_jax.models.wrapped import WrappedBackbone


def follow_compute_dtype(backbone: Backbone, dtype: np.dtype) -> None:
    """Sets the dtype of Flax's layers that have none, in place. Parameters keep their dtype.

    Args:
      backbone: a custom backbone; those of this package are not changed.
      dtype: `compute_dtype` of the classifier.
    """
    if dtype == jnp.float32 or not isinstance(backbone, nnx.Module) or _is_own(backbone):
        return
    for _, module in nnx.iter_modules(backbone):
        if hasattr(module, "param_dtype") and getattr(module, "dtype", dtype) is None:
            module.dtype = dtype  # pyright: ignore[reportAttributeAccessIssue]


def dtype_deviations(classifier: MultiExitClassifier) -> list[str]:
    """Parts of the backbone whose feature maps are not in `compute_dtype`, with their dtype.

    Args:
      classifier: result of `optimize_classifier`. It is traced on one image; nothing is computed.

    Returns:
      For example ["stem: float32", "stage 2: float32"]. Stages are counted from 1.
    """
    graphdef, state = nnx.split(classifier)
    images = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)

    def maps_of(state: nnx.State, images: jax.Array) -> dict[str, State]:
        network = nnx.merge(graphdef, state, copy=True)
        maps: dict[str, State] = {"stem": network.stem(images)}
        network.features(images, tap=lambda i, x: maps.setdefault(f"stage {i + 1}", x))
        return maps

    expected = jnp.dtype(classifier.compute_dtype)
    return [
        f"{part}: {dtype}"
        for part, maps in jax.eval_shape(maps_of, state, images).items()
        for dtype in sorted({x.dtype.name for x in jax.tree.leaves(maps) if _differs(x, expected)})
    ]


def _differs(x: jax.ShapeDtypeStruct, expected: np.dtype) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating)) and x.dtype != expected


def _is_own(backbone: nnx.Module) -> bool:
    is_of_package = type(backbone).__module__.partition(".")[0] == __name__.partition(".")[0]
    return is_of_package and not isinstance(backbone, WrappedBackbone)
