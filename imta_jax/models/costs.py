"""What each exit costs, traced from what the network really computes.

The network is traced in inference mode on one image, and the operations of the trace are counted,
so that a new backbone or new heads need no formula. Two conventions are kept: `macs`, and
`published_ops`, which the paper's tables call MADDs (golden/README.md, "costs.json").
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from imta_jax.models import MultiExitClassifier
from imta_jax.nn.convolution import convolve


@dataclasses.dataclass(frozen=True)
class ExitCosts:
    """Cumulative costs per exit, of everything that ran until then, earlier heads included.

    Attributes:
      macs: int64 [E], multiply-adds of convolutions and linear layers, per image.
      published_ops: int64 [E], `macs` plus one per linear bias, one per ReLU input and k x k per
        output of a k x k pooling; batch normalisation is free.
      params: int64 [E], trainable parameters of the stages and heads that ran.
    """

    macs: np.ndarray
    published_ops: np.ndarray
    params: np.ndarray


@dataclasses.dataclass
class _Tally:
    """Counts so far: multiply-adds, and what the published convention counts besides."""

    macs: int = 0
    extra_ops: int = 0


@dataclasses.dataclass
class _Values:
    """What is known of the variables of one jaxpr.

    Attributes:
      data: depend on the image; anything else is weights and costs nothing per image.
      products: come straight from a matrix product, so that adding weights to one is a bias.
      zeros: are the constant 0, so that a maximum with one is a ReLU.
    """

    data: set[core.Var]
    products: set[core.Var]
    zeros: set[core.Var]

    def is_data(self, atom: Any) -> bool:
        return isinstance(atom, core.Var) and atom in self.data

    def is_zero(self, atom: Any) -> bool:
        if isinstance(atom, core.Literal):
            return np.ndim(atom.val) == 0 and atom.val == 0
        return atom in self.zeros


def exit_costs(
    classifier: MultiExitClassifier, image_shape: tuple[int, int, int] | None = None
) -> ExitCosts:
    """Counts what each exit costs on one image, by tracing; nothing is computed or changed.

    Args:
      classifier: phase I or II; the heads in use are counted, phase-I heads kept beside are not.
        An abstract one (`nnx.eval_shape`) will do.
      image_shape: (H, W, C); default, the shape that the classifier was built for. Another height
        and width answer what the network would cost there.

    Raises:
      ValueError: another number of channels.
    """
    shape = (1, *(image_shape or classifier.image_shape))
    if shape[3:] != classifier.image_shape[2:]:
        raise ValueError(
            f"expected image_shape (H, W, {classifier.image_shape[2]}); found {shape[1:]}"
        )
    graphdef, params, rest = nnx.split(classifier, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)

    def run(leaves: list[jax.Array], rest: nnx.State, images: jax.Array) -> list[jax.Array]:
        network = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), rest, copy=True)
        network.eval()
        state, carry, outputs = network.backbone.stem(images), None, []
        for i in range(network.num_exits):
            state, logits, carry = network.advance(i, state, carry)
            # A copy is an operation of its own and marks in the trace where this exit ends.
            outputs.append(jax.lax.optimization_barrier(logits))
        return outputs

    jaxpr = jax.make_jaxpr(run)(leaves, rest, jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
    weights = {v: math.prod(leaf.shape) for v, leaf in zip(jaxpr.invars, leaves, strict=False)}
    return ExitCosts(*np.transpose(list(_costs_at_exits(jaxpr, weights))))


def _costs_at_exits(
    jaxpr: core.Jaxpr, weights: Mapping[core.Var, int]
) -> Iterator[tuple[int, int, int]]:
    """(macs, published_ops, params) at every exit, in the order of the trace."""
    values, tally, read = _Values({jaxpr.invars[-1]}, set(), set()), _Tally(), set()
    for eqn in jaxpr.eqns:
        _count(eqn, values, tally)
        read.update(atom for atom in eqn.invars if isinstance(atom, core.Var) and atom in weights)
        if eqn.primitive.name == "optimization_barrier":
            params = sum(weights[weight] for weight in read)
            yield tally.macs, tally.macs + tally.extra_ops, params


def _count(eqn: core.JaxprEqn, values: _Values, tally: _Tally) -> None:
    """Counts one equation, or those of the jaxpr that it calls."""
    if eqn.params.get("name") == convolve.__name__:
        tally.macs += _convolve_macs(eqn)
        values.data.update(eqn.outvars)
        return
    inner = _called(eqn.params)
    if inner is not None:
        _count_call(eqn, inner, values, tally)
        return
    _follow(eqn, values)
    if any(values.is_data(atom) for atom in eqn.invars):
        _count_operation(eqn, values, tally)
        values.data.update(eqn.outvars)


def _called(params: Mapping[str, Any]) -> core.Jaxpr | None:
    """The jaxpr that an equation calls (jit, custom_jvp, custom_vjp, remat), if any."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            return getattr(params[key], "jaxpr", params[key])
    return None


def _count_call(eqn: core.JaxprEqn, inner: core.Jaxpr, values: _Values, tally: _Tally) -> None:
    """Counts a called jaxpr with what is known of its arguments; hands back what it found out."""
    known = _Values(set(), set(), set())
    for outer, own in zip(eqn.invars, inner.invars, strict=True):
        if values.is_data(outer):
            known.data.add(own)
        if isinstance(outer, core.Var) and outer in values.products:
            known.products.add(own)
        if values.is_zero(outer):
            known.zeros.add(own)
    for own in inner.eqns:
        _count(own, known, tally)
    for own, outer in zip(inner.outvars, eqn.outvars, strict=True):
        for mine, theirs in ((known.data, values.data), (known.products, values.products)):
            if isinstance(own, core.Var) and own in mine:
                theirs.add(outer)
        if known.is_zero(own):
            values.zeros.add(outer)


def _follow(eqn: core.JaxprEqn, values: _Values) -> None:
    """A zero, or a product, stays one when it is broadcast, converted or reshaped."""
    if eqn.primitive.name in ("broadcast_in_dim", "convert_element_type", "reshape"):
        if values.is_zero(eqn.invars[0]):
            values.zeros.update(eqn.outvars)
        elif isinstance(eqn.invars[0], core.Var) and eqn.invars[0] in values.products:
            values.products.update(eqn.outvars)


def _count_operation(eqn: core.JaxprEqn, values: _Values, tally: _Tally) -> None:
    """Adds one equation on image data to the tally."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "conv_general_dilated":
        tally.macs += _conv_macs(eqn)
    elif name == "dot_general":
        tally.macs += _dot_macs(eqn)
        values.products.update(eqn.outvars)
    elif name == "max" and any(values.is_zero(atom) for atom in eqn.invars):
        tally.extra_ops += out.size
    elif name == "add" and _is_bias(eqn, values):
        tally.extra_ops += out.shape[-1]
    elif name.startswith("reduce_window"):
        tally.extra_ops += out.size * math.prod(eqn.params["window_dimensions"])
    elif name in ("reduce_sum", "reduce_max") and _is_global_pool(eqn):
        tally.extra_ops += eqn.invars[0].aval.size


def _convolve_macs(eqn: core.JaxprEqn) -> int:
    """Those of the convolution that was asked for, in whatever form it is computed."""
    kernel = eqn.invars[1].aval
    return eqn.outvars[0].aval.size * (kernel.size // kernel.shape[-1])


def _conv_macs(eqn: core.JaxprEqn) -> int:
    """Output elements x (kernel area x input channels per group)."""
    kernel = eqn.invars[1].aval
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return eqn.outvars[0].aval.size * (kernel.size // kernel.shape[out_axis])


def _dot_macs(eqn: core.JaxprEqn) -> int:
    """Output elements x length of the contracted axes."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _is_bias(eqn: core.JaxprEqn, values: _Values) -> bool:
    """An addition of weights to a matrix product; of two products it is none."""
    data = [atom for atom in eqn.invars if values.is_data(atom)]
    return len(data) == 1 and data[0] in values.products


def _is_global_pool(eqn: core.JaxprEqn) -> bool:
    """A reduction of a map [1, H, W, C] over its two spatial axes."""
    return eqn.invars[0].aval.ndim == 4 and tuple(eqn.params["axes"]) == (1, 2)
