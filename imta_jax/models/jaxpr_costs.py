"""Counting the operations of a jaxpr: multiply-adds, and what the published counters add.

A jaxpr does not say which operation was a bias, a ReLU or a pooling. The counter recognizes them by
what is known of their operands (`Known`). Called jaxprs (jit, remat, custom gradients) are counted
where they are called. A `scan` counts its body times its length, a `cond` its costliest branch.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from imta_jax.errors import InputError
from imta_jax.nn.convolution import convolve

# Primitives that run a jaxpr once, with the same operands and results.
_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}
_PASS_THROUGH = {"broadcast_in_dim", "convert_element_type", "reshape"}


@dataclasses.dataclass
class Counts:
    """Operations counted so far.

    Attributes:
      macs: multiply-adds.
      extra_ops: biases, ReLUs and pooling by the published convention.
    """

    macs: int = 0
    extra_ops: int = 0

    def add(self, other: "Counts", times: int = 1) -> None:
        """Adds other counts, `times` times."""
        self.macs += times * other.macs
        self.extra_ops += times * other.extra_ops


@dataclasses.dataclass
class Known:
    """Properties of the variables of a jaxpr.

    Attributes:
      data: variables that depend on the image. All others are computed from parameters and cost
        nothing per image.
      products: results of a matrix product, so adding parameters to them is a bias.
      zeros: constants 0, so a maximum with them is a ReLU.
    """

    data: set[core.Var] = dataclasses.field(default_factory=set)
    products: set[core.Var] = dataclasses.field(default_factory=set)
    zeros: set[core.Var] = dataclasses.field(default_factory=set)

    def properties(self, atom: Any) -> "Properties":
        """The properties of a variable or literal."""
        if isinstance(atom, core.Literal):
            return Properties(zero=np.ndim(atom.val) == 0 and bool(atom.val == 0))
        return Properties(atom in self.data, atom in self.products, atom in self.zeros)

    def set(self, variable: core.Var, properties: "Properties") -> None:
        """Records the properties of a variable."""
        for variables, has_property in (
            (self.data, properties.data),
            (self.products, properties.product),
            (self.zeros, properties.zero),
        ):
            if has_property:
                variables.add(variable)


@dataclasses.dataclass(frozen=True)
class Properties:
    """Properties of one variable; see `Known`."""

    data: bool = False
    product: bool = False
    zero: bool = False

    def join(self, other: "Properties") -> "Properties":
        """The properties of a value that is one of the two."""
        return Properties(
            self.data or other.data, self.product and other.product, self.zero and other.zero
        )


def count_equation(eqn: core.JaxprEqn, known: Known, counts: Counts) -> None:
    """Adds the operations of an equation to `counts`, and its results to `known`.

    Raises:
      ValueError: a loop of unknown length, or a primitive that runs a jaxpr in an unknown way.
    """
    name = eqn.primitive.name
    if eqn.params.get("name") == getattr(convolve, "__name__", None):
        counts.macs += _convolve_macs(eqn)
        known.data.update(eqn.outvars)
    elif name in _CALLS:
        (inner, *_) = _jaxprs(eqn.params)
        _record(eqn, known, _count_jaxpr(inner, [known.properties(v) for v in eqn.invars], counts))
    elif name == "scan":
        _count_scan(eqn, known, counts)
    elif name == "cond":
        _count_cond(eqn, known, counts)
    else:
        _count_operation(eqn, known, counts)


def _record(eqn: core.JaxprEqn, known: Known, results: Sequence[Properties]) -> None:
    for variable, properties in zip(eqn.outvars, results, strict=True):
        known.set(variable, properties)


def _jaxprs(params: Any) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if isinstance(jaxpr, core.Jaxpr):
                yield jaxpr


def _count_jaxpr(
    jaxpr: core.Jaxpr, inputs: Sequence[Properties], counts: Counts
) -> list[Properties]:
    """Counts a jaxpr once, given the properties of its inputs; returns those of its outputs."""
    known = Known()
    for variable, properties in zip(jaxpr.invars, inputs, strict=True):
        known.set(variable, properties)
    for eqn in jaxpr.eqns:
        count_equation(eqn, known, counts)
    return [known.properties(atom) for atom in jaxpr.outvars]


def _count_scan(eqn: core.JaxprEqn, known: Known, counts: Counts) -> None:
    """The body, `length` times."""
    (body,) = _jaxprs(eqn.params)
    inputs = [known.properties(v) for v in eqn.invars]
    first, count = eqn.params["num_consts"], eqn.params["num_carry"]
    while True:
        per_step = Counts()
        outputs = _count_jaxpr(body, inputs, per_step)
        # The carry is the initial value or an earlier step's output. What holds for both is found
        # by repetition: a property that is lost never returns.
        carry = [a.join(b) for a, b in zip(inputs[first : first + count], outputs, strict=False)]
        if carry == inputs[first : first + count]:
            break
        inputs[first : first + count] = carry
    counts.add(per_step, eqn.params["length"])
    _record(eqn, known, outputs)


def _count_cond(eqn: core.JaxprEqn, known: Known, counts: Counts) -> None:
    """The largest count of any branch."""
    index, *operands = (known.properties(v) for v in eqn.invars)
    branches, outputs = [], []
    for branch in _jaxprs(eqn.params):
        branches.append(Counts())
        outputs.append(_count_jaxpr(branch, operands, branches[-1]))
    counts.macs += max(branch.macs for branch in branches)
    counts.extra_ops += max(branch.extra_ops for branch in branches)
    for variable, (first, *others) in zip(eqn.outvars, zip(*outputs, strict=True), strict=True):
        for properties in others:
            first = first.join(properties)
        known.set(variable, dataclasses.replace(first, data=first.data or index.data))


def _count_operation(eqn: core.JaxprEqn, known: Known, counts: Counts) -> None:
    """An equation that is a single operation."""
    if eqn.primitive.name in _PASS_THROUGH:
        properties = known.properties(eqn.invars[0])
        known.set(eqn.outvars[0], dataclasses.replace(properties, data=False))
    if not any(known.properties(atom).data for atom in eqn.invars):
        return
    _check_inner_jaxprs(eqn)
    known.data.update(eqn.outvars)
    name, out = eqn.primitive.name, _shaped(eqn.outvars[0])
    if name == "conv_general_dilated":
        counts.macs += _conv_macs(eqn)
    elif name == "dot_general":
        counts.macs += _dot_macs(eqn)
        known.products.update(eqn.outvars)
    elif name == "max" and any(known.properties(atom).zero for atom in eqn.invars):
        counts.extra_ops += out.size
    elif name == "add" and _is_bias(eqn, known):
        counts.extra_ops += out.shape[-1]
    elif name.startswith("reduce_window"):
        counts.extra_ops += out.size * math.prod(eqn.params["window_dimensions"])
    elif name in ("reduce_sum", "reduce_max") and _is_global_pool(eqn):
        counts.extra_ops += _shaped(eqn.invars[0]).size


def _check_inner_jaxprs(eqn: core.JaxprEqn) -> None:
    """Raises a ValueError if the equation runs countable operations an unknown number of times."""
    for inner in _jaxprs(eqn.params):
        counts = Counts()
        _count_jaxpr(inner, [Properties(data=True)] * len(inner.invars), counts)
        if counts != Counts():
            name = eqn.primitive.name
            operation = (
                "a while loop of unknown length; use jax.lax.scan, or fori_loop with static bounds"
                if name == "while"
                else f"the primitive {name!r}, which runs a function an unknown number of times"
            )
            raise InputError(f"cannot count the cost of {operation}")


def _convolve_macs(eqn: core.JaxprEqn) -> int:
    """Multiply-adds of a call of `convolve`, independent of the form that computes it."""
    kernel = _shaped(eqn.invars[1])
    return _shaped(eqn.outvars[0]).size * (kernel.size // kernel.shape[-1])


def _conv_macs(eqn: core.JaxprEqn) -> int:
    """Output elements x (kernel area x input channels per group)."""
    kernel = _shaped(eqn.invars[1])
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return _shaped(eqn.outvars[0]).size * (kernel.size // kernel.shape[out_axis])


def _dot_macs(eqn: core.JaxprEqn) -> int:
    """Output elements x length of the contracted axes."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = _shaped(eqn.invars[0]).shape
    return _shaped(eqn.outvars[0]).size * math.prod(shape[axis] for axis in contracted)


def _is_bias(eqn: core.JaxprEqn, known: Known) -> bool:
    """Whether parameters are added to a matrix product."""
    data = [properties for properties in map(known.properties, eqn.invars) if properties.data]
    return len(data) == 1 and data[0].product


def _is_global_pool(eqn: core.JaxprEqn) -> bool:
    """Whether a map [1, H, W, C] is reduced over its two spatial axes."""
    return _shaped(eqn.invars[0]).ndim == 4 and tuple(eqn.params["axes"]) == (1, 2)


def _shaped(atom: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of an operand or a result."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)
