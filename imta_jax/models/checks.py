"""Checks of custom backbones and heads.

They are called abstractly (`jax.eval_shape`), so that an error names what is wrong before anything
is compiled or trained.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.errors import InputError
from imta_jax.models.classifier import Backbone, Heads
from imta_jax.runtime.factories import failure_of
from imta_jax.runtime.registry import dotted_path_of

_NUM_IMAGES = 2
_METHODS = ("stem", "stage", "exit_features")


def check_backbone(backbone: Any, image_shape: tuple[int, int, int], field: str) -> Backbone:
    """Returns the backbone if it fulfills the contract (`classifier.Backbone`).

    Args:
      backbone: return value of a factory.
      image_shape: (H, W, C) of the images.
      field: config field and value, for messages.

    Raises:
      InputError: names the attribute, method or shape that is wrong, and what was expected.
    """
    if not isinstance(backbone, nnx.Module):
        raise InputError(
            f"{field}: the factory must return a flax.nnx.Module; found {_kind_of(backbone)}"
        )
    name = type(backbone).__name__
    missing = [
        member
        for member in ("num_exits", "feature_widths", *_METHODS)
        if not hasattr(backbone, member)
    ]
    if missing:
        raise InputError(
            f"{field}: {name} lacks {', '.join(missing)}; a backbone has num_exits, "
            "feature_widths, stem(images), stage(i, state) and exit_features(i, state)"
        )
    checked = cast(Backbone, backbone)
    exits, widths = checked.num_exits, checked.feature_widths
    if not isinstance(exits, int) or exits < 1:
        raise InputError(f"{field}: {name}.num_exits must be an integer above 0; found {exits!r}")
    is_sequence = hasattr(widths, "__len__")
    if (
        not is_sequence
        or len(widths) != exits
        or not all(isinstance(w, int) and w > 0 for w in widths)
    ):
        raise InputError(
            f"{field}: {name}.feature_widths must be {exits} integers, one per exit; found "
            f"{widths!r}"
        )
    images = jax.ShapeDtypeStruct((_NUM_IMAGES, *image_shape), jnp.float32)
    label = f"{field}: {name}"
    state = _shapes(f"{label}.stem(images)", backbone, "stem", images)
    _check_state(f"{label}.stem(images)", state)
    for i in range(exits):
        state = _shapes(f"{label}.stage({i}, state)", backbone, "stage", i, state)
        _check_state(f"{label}.stage({i}, state) of exit {i + 1}", state)
        call = f"{label}.exit_features({i}, state)"
        _check_array(call, _shapes(call, backbone, "exit_features", i, state), widths[i])
    return checked


def check_heads(heads: Any, feature_widths: tuple[int, ...], num_classes: int, field: str) -> Heads:
    """Returns the heads if they fulfill the contract (`classifier.Heads`).

    Args:
      heads: return value of a factory.
      feature_widths: feature widths of the backbone.
      num_classes: K.
      field: config field and value, for messages.

    Raises:
      InputError: names what is wrong, and what was expected.
    """
    if not isinstance(heads, nnx.Module) or not callable(heads):
        raise InputError(
            f"{field}: the factory must return a flax.nnx.Module with __call__(i, features, "
            f"carry) -> (logits, carry); found {_kind_of(heads)}"
        )
    carry = None
    for i, width in enumerate(feature_widths):
        features = jax.ShapeDtypeStruct((_NUM_IMAGES, width), jnp.float32)
        call = f"{field}: {type(heads).__name__}({i}, features, carry)"
        outputs = _shapes(call, heads, "__call__", i, features, carry)
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise InputError(f"{call} must return (logits, carry); found {_described(outputs)}")
        logits, carry = outputs
        _check_array(call, logits, num_classes)
    return cast(Heads, heads)


def _shapes(label: str, module: nnx.Module, method: str, *arguments: Any) -> Any:
    """The shapes that a method returns for a batch, without a change of the module."""
    graphdef, variables = nnx.split(module)
    # Exits are numbers, not arrays: they select modules.
    numbers = [argument for argument in arguments if isinstance(argument, int)]
    arrays = arguments[len(numbers) :]

    def call(variables: nnx.State, arrays: tuple[Any, ...]) -> Any:
        merged = nnx.merge(graphdef, variables, copy=True)
        merged.eval()
        run: Callable[..., Any] = getattr(merged, method)
        return run(*numbers, *arrays)

    try:
        return jax.eval_shape(call, variables, arrays)
    except Exception as error:
        raise failure_of(label, error) from error


def _check_state(label: str, state: Any) -> None:
    """Checks the state, which may not be empty: means of no positions are not finite."""
    if not isinstance(state, tuple) or not state:
        raise InputError(
            f"{label} must return a tuple of arrays, finest scale first; found {_described(state)}"
        )
    for leaf in jax.tree.leaves(state):
        if not leaf.shape or leaf.shape[0] != _NUM_IMAGES:
            raise InputError(
                f"{label} returned an array {leaf.shape} for {_NUM_IMAGES} images; expected the "
                "images along the first axis of every array"
            )
        if 0 in leaf.shape:
            raise InputError(
                f"{label} returned an empty array {leaf.shape} for {_NUM_IMAGES} images; expected "
                "at least one position and channel: use fewer strides or poolings, or larger images"
            )


def _check_array(label: str, returned: Any, width: int) -> None:
    if getattr(returned, "shape", None) != (_NUM_IMAGES, width):
        raise InputError(
            f"{label} must return an array {(_NUM_IMAGES, width)} for {_NUM_IMAGES} images; found "
            f"{_described(returned)}"
        )
    if not jnp.issubdtype(returned.dtype, jnp.floating):
        raise InputError(
            f"{label} must return an array of a floating-point type, which has gradients; found "
            f"{returned.dtype}"
        )


def _kind_of(value: Any) -> str:
    """None, or the class of a value. Modules of Linen print their attributes in many lines."""
    return "None" if value is None else dotted_path_of(value)


def _described(value: Any) -> str:
    return str(value.shape) if hasattr(value, "shape") else repr(value)
