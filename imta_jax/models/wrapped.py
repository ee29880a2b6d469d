"""Backbones from existing sequential models: `imta_jax.wrap`.

    def make_resnet(options, *, num_classes, image_shape, rngs):
        return imta_jax.wrap(
            ResNet(rngs=rngs),  # your own, unchanged
            layers=["stem", "blocks"],
            exits=["blocks.2", "blocks.5"],
            image_shape=image_shape,
        )

The layers run in the given order. They are attributes or methods of the model, each of which maps
one array to the next. An exit pools the output of its layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import FlaxError
from flax.nnx import bridge
from jaxtyping import Array, Float

from imta_jax.errors import InputError, closest_first
from imta_jax.models.classifier import State
from imta_jax.models.linen_model import LinenModel, drop_unused_keys, initialized
from imta_jax.runtime.factories import failure_of

Pool = Callable[[jax.Array], jax.Array]


def mean_features(x: Float[Array, "N *positions C"]) -> Float[Array, "N C"]:
    """The mean over all axes but the first and the last: global average pooling."""
    return x.mean(axis=tuple(range(1, x.ndim - 1)))


class WrappedBackbone(nnx.Module):
    """The backbone contract (`classifier.Backbone`) on the layers of an existing model.

    Attributes:
      module: the model; parts that are not among the layers are kept without effect.
      stages: per exit, the names of the layers before it.
      num_exits: number of exits.
      feature_widths: channels of the pooled features, per exit.
      exit_layers: one per exit, or empty.
    """

    def __init__(
        self,
        module: nnx.Module,
        stages: Sequence[Sequence[str]],
        pool: Pool,
    ):
        self.module, self.pool = module, pool
        self.stages = tuple(map(tuple, stages))
        self.num_exits = len(self.stages)
        self.feature_widths: tuple[int, ...] = ()
        self.exit_layers = nnx.List([])

    def stem(self, images: Float[Array, "N H W C"]) -> State:
        """The images: all layers belong to stages."""
        return (images,)

    def stage(self, i: int, state: State) -> State:
        """Runs the layers before exit i (from 0)."""
        (x,) = state
        for name in self.stages[i]:
            x = self.call(name, x)
        return (x,)

    def exit_features(self, i: int, state: State) -> Float[Array, "N F"]:
        """Pooled features of exit i, with F = feature_widths[i]."""
        (x,) = state
        return self.pool(self.exit_layers[i](x) if len(self.exit_layers) else x)

    def call(self, name: str, x: jax.Array) -> jax.Array:
        """Runs one layer."""
        if isinstance(self.module, LinenModel):
            return self.module.run(_attribute, name, x)
        return _attribute(self.module, name)(x)


def wrap(
    module: nnx.Module | linen.Module,
    *,
    exits: Sequence[str],
    image_shape: tuple[int, int, int],
    layers: Sequence[str] | None = None,
    pool: Pool = mean_features,
    exit_layer: Callable[[int], nnx.Module] | None = None,
    rngs: nnx.Rngs | None = None,
) -> WrappedBackbone:
    """Makes a backbone from an existing sequential model.

    Args:
      module: an NNX or Linen model; `nnx.Sequential`, `linen.Sequential`, or any model whose layers
        are attributes or methods. It is not copied. A Linen model is initialized here, through
        `flax.nnx.bridge`; or pass an initialized `bridge.ToNNX`, whose weights are kept.
      exits: layers that an exit follows, for example "blocks.2"; the last layer always has one.
      image_shape: (H, W, C) of the images.
      layers: names of the layers in the order of the forward pass. The name of a list or dictionary
        stands for its entries, "blocks" for "blocks.0", "blocks.1", ... By default those of a
        sequential model.
      pool: maps the output of a layer to features [N, F].
      exit_layer: width -> a module that is applied before pooling, for example a normalization.
      rngs: needed for a Linen model.

    Raises:
      InputError: a layer that does not exist or fails, or exits that are not layers in rising
        order.
    """
    _check_image_shape(image_shape)
    if exit_layer is not None and not callable(exit_layer):
        raise InputError(
            "exit_layer must be a function of the width that returns a module, such as "
            f"lambda width: nnx.LayerNorm(width, rngs=rngs); found {exit_layer!r}"
        )
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    model = _nnx_model(module, image_shape, rngs)
    names = _expanded(model, layers)
    backbone = WrappedBackbone(model, _split(names, exits), pool)
    shapes, widths = _output_shapes(backbone, images), []
    if isinstance(model, LinenModel):
        drop_unused_keys(model, lambda model: _run(model, names, jnp.zeros(images.shape)))
    for i, shape in enumerate(shapes):
        if exit_layer is not None:
            backbone.exit_layers.append(_exit_layer(exit_layer, shape.shape[-1]))
        features = _shape_of(
            lambda b, x, i=i: b.exit_features(i, (x,)), backbone, shape, f"exit {i + 1}"
        )
        widths.append(features.shape[-1])
    backbone.feature_widths = tuple(widths)
    return backbone


def _exit_layer(make: Callable[[int], Any], width: int) -> Any:
    """The module that is applied before the pooling of an exit."""
    try:
        layer = make(width)
    except Exception as error:
        raise failure_of(f"exit_layer, called with the width {width},", error) from error
    if not callable(layer):
        raise InputError(f"exit_layer must return an NNX module; found {layer!r}")
    return layer


def _check_image_shape(image_shape: Any) -> None:
    is_shape = isinstance(image_shape, Sequence) and not isinstance(image_shape, str)
    if (
        not is_shape
        or len(image_shape) != 3
        or not all(isinstance(size, int) and size > 0 for size in image_shape)
    ):
        hint = ""
        if is_shape and len(image_shape) == 2:
            hint = f", for example {(*image_shape, 3)} for RGB images"
        raise InputError(
            f"image_shape must be (height, width, channels), integers above 0{hint}; found "
            f"{image_shape!r}"
        )


def _nnx_model(module: Any, image_shape: Sequence[int], rngs: nnx.Rngs | None) -> nnx.Module:
    """The model as an NNX module; a Linen model is initialized."""
    if isinstance(module, linen.Module):
        if rngs is None:
            raise InputError("rngs is None; a Linen model is initialized with the factory's rngs")
        return initialized(module, image_shape, rngs)
    if isinstance(module, bridge.ToNNX):
        return LinenModel.from_bridge(module)
    if not isinstance(module, nnx.Module):
        raise InputError(f"module must be an NNX or Linen module, not a class; found {module!r}")
    return module


def _expanded(module: Any, layers: Sequence[str] | None) -> list[str]:
    """The names of single layers."""
    # Attributes of `setup` exist in a bound Linen module only.
    model = module.linen_module.bind({}) if isinstance(module, LinenModel) else module
    if layers is None:
        if not hasattr(model, "layers"):
            raise InputError(
                f"layers is None, and {type(model).__name__} has no attribute `layers` as a "
                "sequential model has; pass the names of its layers in the order of the forward "
                "pass"
            )
        layers = ["layers"]
    _check_names("layers", layers)
    names = []
    for name in layers:
        layer = _attribute(model, name)
        if isinstance(layer, nnx.Dict | dict):
            names += [f"{name}.{key}" for key in layer]
        elif isinstance(layer, nnx.List | list | tuple):
            names += [f"{name}.{index}" for index in range(len(layer))]
        else:
            names.append(name)
    for name in names:
        layer = _attribute(model, name)
        if isinstance(layer, nnx.Variable) or not callable(layer):
            raise InputError(
                f"layer {name!r} is of type {type(layer).__name__}; expected a module or method "
                "that maps one array to the next"
            )
    return names


def _run(model: LinenModel, names: Sequence[str], x: jax.Array) -> jax.Array:
    for name in names:
        x = model.run(_attribute, name, x)
    return x


def _check_names(argument: str, names: Any) -> None:
    is_sequence = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_sequence or not all(isinstance(name, str) for name in names):
        raise InputError(
            f'{argument} must be a list of names of layers, such as ["blocks.2"]; found {names!r}'
        )
    if argument == "layers" and not names:
        raise InputError("layers is empty; expected the names of layers")


def _attribute(module: Any, path: str) -> Any:
    """An attribute by a path such as "blocks.2"."""
    value = module
    for part in path.split("."):
        is_list = isinstance(value, nnx.List | list | tuple)
        if is_list and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif not is_list and hasattr(value, part):
            value = getattr(value, part)
        else:
            closest = ", ".join(closest_first(part, _public_names(value))[:5]) or "none"
            is_linen = isinstance(value, linen.Module)
            hint = "; layers of a Linen model are attributes of its `setup`, or methods"
            raise InputError(
                f"layer {path!r}: {type(value).__name__} has no {part!r}; attributes, the closest "
                f"first: {closest}{hint if is_linen else ''}"
            )
    return value


def _public_names(value: Any) -> list[str]:
    if isinstance(value, nnx.List | list | tuple):
        return [str(index) for index in range(len(value))]
    ignored = ("_", "name", "parent", "scope")
    return [name for name in getattr(value, "__dict__", ()) if not name.startswith(ignored)]


def _split(names: Sequence[str], exits: Sequence[str]) -> list[list[str]]:
    """The layers of each stage."""
    _check_names("exits", exits)
    for name in exits:
        if name not in names:
            raise _unknown_exit(name, names)
    repeated = [name for i, name in enumerate(exits) if name in exits[:i]]
    if repeated:
        raise InputError(f"exits has {repeated[0]!r} twice; expected different layers")
    ends = sorted({*(names.index(name) for name in exits), len(names) - 1})
    if [names[end] for end in ends][: len(exits)] != list(exits):
        raise InputError(
            "exits must be different layers in the order of the layers, "
            f"{tuple(sorted(exits, key=names.index))}; found {tuple(exits)}"
        )
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [list(names[a : b + 1]) for a, b in zip(starts, ends, strict=True)]


def _unknown_exit(name: str, names: Sequence[str]) -> InputError:
    """The error for an exit that is not a layer, for example the name of a list of layers."""
    entries = [layer for layer in names if layer.startswith(f"{name}.")]
    if entries:
        return InputError(
            f"exit {name!r} stands for several layers; name the one that the exit follows, for "
            f"example {entries[-1]!r}; layers: {', '.join(entries)}"
        )
    return InputError(
        f"exit {name!r} is not a layer; layers, the closest first: "
        f"{', '.join(closest_first(name, names))}"
    )


def _output_shapes(
    backbone: WrappedBackbone, images: jax.ShapeDtypeStruct
) -> list[jax.ShapeDtypeStruct]:
    """The shape of the array at each exit, for one image."""
    shapes: list[jax.ShapeDtypeStruct] = []
    x: Any = images
    for names in backbone.stages:
        for name in names:
            x = _shape_of(lambda b, x, name=name: b.call(name, x), backbone, x, f"layer {name!r}")
        if not hasattr(x, "shape") or np.ndim(x) < 2:
            raise InputError(f"layer {names[-1]!r} must return one array [N, ...]; found {x}")
        if 0 in x.shape:
            raise InputError(
                f"layer {names[-1]!r}, before exit {len(shapes) + 1}, returns an empty array "
                f"{x.shape} for one image; expected at least one position and channel: use fewer "
                "strides or poolings, or larger images"
            )
        shapes.append(x)
    return shapes


def _shape_of(run: Callable[..., Any], backbone: WrappedBackbone, x: Any, part: str) -> Any:
    """The shape that a part of the backbone returns for an input; its errors name the part."""

    def output(backbone: WrappedBackbone, x: Any) -> Any:
        backbone.eval()  # attention with dropout requires a mode
        return run(backbone, x)

    try:
        return nnx.eval_shape(output, backbone, x)
    except Exception as error:
        hint = ""
        if isinstance(error, FlaxError):
            hint = (
                "; a Linen layer must be initialized (`bridge.lazy_init`), and must draw no random "
                "numbers and change no statistics in inference mode, which it takes as an argument "
                "`train`, `training`, `is_training`, `deterministic` or `use_running_average`"
            )
        label = f"{part}, called with an input of shape {jax.tree.map(jnp.shape, x)},"
        raise failure_of(label, error, hint) from error
