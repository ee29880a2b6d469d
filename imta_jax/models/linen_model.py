"""A Linen model whose layers run one at a time, with its variables as NNX variables.

`flax.nnx.bridge.ToNNX` is not called: it replaces the variables that a layer updates, does not
follow `train()` and `eval()`, and initializes a model operation by operation.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.errors import InvalidRngError
from flax.nnx import bridge
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from imta_jax.errors import InputError
from imta_jax.runtime.quick_compilation import options_for_one_run

# Names by which Linen layers take the mode, as a parameter of the call or as a field.
_TRAIN = ("train", "training", "is_training")
_OWN_ATTRIBUTES = ("linen_module", "linen_rngs", "frozen_layers")
_OWN_MODES = ("deterministic", "use_running_average")


class LinenModel(nnx.Module):
    """A Linen model and its variables, which have the names and types that `bridge.ToNNX` uses.

    In training mode its layers draw random keys and update batch statistics and other collections
    in place. In inference mode they do neither.

    Attributes:
      linen_module: the model.
      linen_rngs: keys of dropout and other random layers; None if no layer draws any.
      frozen_layers: layers that run in inference mode always; see `freeze_statistics`.
      deterministic, use_running_average: the mode, which `train()` and `eval()` set.
    """

    def __init__(self, module: linen.Module, variables: Mapping[str, Any], rngs: nnx.Rngs | None):
        self.linen_module, self.linen_rngs = module, nnx.data(rngs)
        self.frozen_layers: tuple[str, ...] = ()
        self.deterministic = self.use_running_average = False
        for name, value in variables.items():
            setattr(self, name, nnx.data(value))

    @classmethod
    def from_bridge(cls, bridged: bridge.ToNNX) -> "LinenModel":
        """The model of an initialized `bridge.ToNNX`, with the same variables."""
        not_variables = ("to_nnx__", "_pytree__", "_object__")
        variables = {n: v for n, v in vars(bridged).items() if not n.startswith(not_variables)}
        return cls(bridged.to_nnx__module, variables, bridged.to_nnx__rngs)

    def run(self, find: Callable[[Any, str], Any], layer: str, x: jax.Array) -> jax.Array:
        """Runs one layer in the current mode.

        Args:
          find: (bound Linen module, name of a layer) -> the layer, a module or function.
          layer: name of the layer.
          x: input of the layer.
        """
        mode = self._mode(layer)
        is_training = not all(mode[name] for name in _OWN_MODES)
        variables = self._variables()
        values = {path: variable.get_value() for path, variable in variables.items()}
        mutable = sorted({path[0] for path in values} - {"params"}) if is_training else []

        def call(module: linen.Module, x: jax.Array) -> Any:
            layer_function = find(module, layer)
            return layer_function(x, **_mode_arguments(layer_function, mode))

        module, rngs = with_mode(self.linen_module, mode), self._keys() if is_training else {}
        tree = unflatten_dict(values)
        y, updated = module.apply(tree, x, rngs=rngs, method=call, mutable=mutable)
        for path, value in flatten_dict(updated).items():
            if value is not values.get(path):
                self._check_updated(layer, path, values)
                variables[path].set_value(value)
        return y

    def _check_updated(self, layer: str, path: tuple[str, ...], values: Mapping[Any, Any]) -> None:
        name = ".".join(path[1:])
        if path not in values:
            raise InputError(
                f"layer {layer!r} creates the variable {name} in training mode only; create it"
                " when the model is initialized"
            )
        if path[1] in self.frozen_layers:
            raise InputError(
                f"layer {layer!r} updates {name}, which `freeze` matches; name its parts as layers,"
                f" so that {path[1]!r} alone is frozen"
            )

    def freeze_statistics(self, matches: Callable[[tuple[str, ...]], bool]) -> None:
        """From now on, runs the layers in inference mode whose batch statistics match.

        Args:
          matches: path of a batch statistic in this module -> whether it is frozen.
        """
        paths = [path[1:] for path in self._variables() if path[0] == "batch_stats"]
        self.frozen_layers = tuple(sorted({path[0] for path in paths if matches(path)}))

    def _mode(self, layer: str) -> dict[str, bool]:
        """The mode of a layer, by each name that Linen layers may have for it."""
        is_frozen = layer.replace(".", "_") in self.frozen_layers
        own = {name: is_frozen or getattr(self, name) for name in _OWN_MODES}
        return own | dict.fromkeys(_TRAIN, not own["deterministic"])

    def _keys(self) -> dict[str, jax.Array]:
        """Linen draws keys of all other names from `params`."""
        if self.linen_rngs is None:
            return {}
        return {name: self.linen_rngs() for name in ("params", "dropout")}

    def _variables(self) -> dict[tuple[str, ...], nnx.Variable]:
        """The variables by collection and path."""
        not_variables = (*_OWN_ATTRIBUTES, *_OWN_MODES)
        tree = {
            name: value
            for name, value in vars(self).items()
            if name not in not_variables and isinstance(value, dict | nnx.Variable)
        }
        flat: dict[tuple[str, ...], Any] = flatten_dict(tree)
        return {
            (nnx.variable_name_from_type(type(variable)), *path): variable
            for path, variable in flat.items()
        }


def initialized(module: linen.Module, image_shape: Sequence[int], rngs: nnx.Rngs) -> LinenModel:
    """Initializes a Linen model with an image, in inference mode.

    Args:
      module: the model.
      image_shape: (H, W, C).
      rngs: a fork of it initializes the model, and then gives keys to its layers.
    """
    mode: dict[str, bool] = {**dict.fromkeys(_OWN_MODES, True), **dict.fromkeys(_TRAIN, False)}
    module = with_mode(module, mode)
    arguments: Any = _mode_arguments(module, mode)

    def call(module: Any, x: jax.Array, **arguments: bool) -> Any:
        if not isinstance(module, linen.Sequential):
            return module(x, **arguments)
        for layer in module.layers:  # a sequential model passes no mode on
            x = layer(x, **_mode_arguments(layer, mode))
        return x

    rngs = rngs.fork()
    keys = {name: stream() for name, stream in rngs.items()}
    if "params" not in keys:
        keys["params"] = keys.pop("default")
    # Jitted, which compiles one program for all parameters and skips the forward pass.
    init = jax.jit(
        lambda keys: module.init(keys, jnp.zeros((1, *image_shape)), **arguments, method=call),
        # Within a trace, JAX rejects compiler options.
        compiler_options={} if isinstance(keys["params"], Tracer) else options_for_one_run(),
    )
    variables = {}
    for (collection, *path), value in flatten_dict(linen.meta.unbox(init(keys))).items():
        if tuple(path) in variables:
            raise InputError(f"two variables of the Linen model have the name {'.'.join(path)}")
        kind = nnx.variable_type_from_name(collection, allow_register=True)
        variables[tuple(path)] = kind(value)
    return LinenModel(module, unflatten_dict(variables), rngs)


def drop_unused_keys(model: LinenModel, run: Callable[[LinenModel], Any]) -> None:
    """Removes the keys of a model that draws none, so that checkpoints do not contain them.

    Args:
      model: changed in place.
      run: runs all layers.

    Raises:
      InputError: layers draw keys, and the model has none.
    """

    def in_training(model: LinenModel) -> Any:
        model.train()
        return run(model)

    keys, model.linen_rngs = model.linen_rngs, nnx.data(None)
    try:
        nnx.eval_shape(in_training, model)
    except InvalidRngError as error:
        if keys is None:
            raise InputError(
                "rngs is None, and layers of the Linen model draw random numbers in training mode"
                f" ({error}); initialize `bridge.ToNNX` with rngs"
            ) from error
        model.linen_rngs = keys


def with_mode(module: linen.Module, mode: Mapping[str, bool]) -> linen.Module:
    """A copy of a Linen module in a mode: of its fields, and of modules in its fields.

    Only fields that are True or False change. A sequential model cannot pass the mode to its
    layers, so theirs change also if they are None.
    """
    changes = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name in mode and isinstance(value, bool):
            changes[field.name] = mode[field.name]
        elif field.init and field.name not in ("parent", "name"):
            changes[field.name] = jax.tree.map(
                lambda leaf: _with_mode(leaf, module, mode), value, is_leaf=_is_module
            )
    return module.clone(**changes)


def _with_mode(leaf: Any, parent: linen.Module, mode: Mapping[str, bool]) -> Any:
    if not _is_module(leaf):
        return leaf
    if isinstance(parent, linen.Sequential):
        fields = {field.name for field in dataclasses.fields(leaf)}
        missing = [n for n in _OWN_MODES if n in fields and getattr(leaf, n) is None]
        leaf = leaf.clone(**{name: mode[name] for name in missing})
    return with_mode(leaf, mode)


def _is_module(value: Any) -> bool:
    return isinstance(value, linen.Module)


def _mode_arguments(layer: Any, mode: Mapping[str, bool]) -> dict[str, bool]:
    """The mode as keywords, by the names that a layer's call has and its fields do not set."""
    try:
        accepted = inspect.signature(layer.__call__ if _is_module(layer) else layer).parameters
    except (TypeError, ValueError):  # a built-in function
        return {}
    return {
        name: value
        for name, value in mode.items()
        if name in accepted and getattr(layer, name, None) is None
    }
