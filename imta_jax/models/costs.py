"""Costs of a network, counted in a trace of what it computes.

The network is traced in inference mode on one image and the operations of the trace are counted, so
a new backbone or new heads need no formula. There are two conventions: `macs`, and `published_ops`,
which the paper's tables call MADDs. A loop of unknown length raises an error.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jaxtyping import Int64

from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.models.jaxpr_costs import Counts, Known, count_equation


@dataclasses.dataclass(frozen=True)
class ExitCosts:
    """Cumulative costs per exit: all stages and heads up to it.

    Attributes:
      macs: multiply-adds of convolutions and linear layers, per image.
      published_ops: `macs` plus one per linear bias, one per ReLU input and k x k per output of a
        k x k pooling; batch normalization is free.
      params: trainable parameters.
    """

    macs: Int64[np.ndarray, " E"]
    published_ops: Int64[np.ndarray, " E"]
    params: Int64[np.ndarray, " E"]


# mark(arrays) ends a part of the network: costs are reported there.
Mark = Callable[[Any], None]
# Runs a network on images [1, H, W, C] and marks the end of each part.
Driver = Callable[[MultiExitClassifier, jax.Array, Mark], None]


def exit_costs(
    classifier: MultiExitClassifier, image_shape: tuple[int, int, int] | None = None
) -> ExitCosts:
    """Counts what each exit costs for one image. Traces the network and computes nothing.

    Args:
      classifier: phase I or II, left unchanged. The heads in use are counted. Phase-I heads that a
        phase-II classifier also holds are not. May be abstract (`nnx.eval_shape`).
      image_shape: (H, W, C); by default the classifier's. Other heights and widths give the costs
        at that resolution.

    Raises:
      ValueError: another number of channels, or an operation whose cost is unknown.
    """

    def drive(network: MultiExitClassifier, images: jax.Array, mark: Mark) -> None:
        state, carry = network.backbone.stem(images), None
        for i in range(network.num_exits):
            state, logits, carry = network.advance(i, state, carry)
            mark(logits)

    return ExitCosts(*np.transpose(cumulative_costs(classifier, drive, image_shape)))


def cumulative_costs(
    classifier: MultiExitClassifier,
    drive: Driver,
    image_shape: tuple[int, int, int] | None = None,
) -> list[tuple[int, int, int]]:
    """Counts (macs, published_ops, params) from the images to each mark.

    Args:
      classifier: see `exit_costs`.
      drive: runs the network in inference mode; called once, under a trace.
      image_shape: see `exit_costs`.

    Raises:
      ValueError: see `exit_costs`.
    """
    shape = tuple(image_shape or classifier.image_shape)
    if shape[2:] != classifier.image_shape[2:]:
        raise InputError(f"expected image_shape (H, W, {classifier.image_shape[2]}); found {shape}")
    graphdef, params, rest = nnx.split(classifier, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)

    def run(leaves: list[jax.Array], rest: nnx.State, images: jax.Array) -> list[Any]:
        network = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), rest, copy=True)
        network.eval()
        marks: list[Any] = []
        # A barrier is an equation of its own, so it shows in the trace where a part ends.
        drive(network, images, lambda x: marks.append(jax.lax.optimization_barrier(x)))
        return marks

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    jaxpr = jax.make_jaxpr(run)(leaves, rest, images).jaxpr
    sizes = {v: math.prod(leaf.shape) for v, leaf in zip(jaxpr.invars, leaves, strict=False)}
    return list(_costs_at_marks(jaxpr, sizes))


def _costs_at_marks(
    jaxpr: core.Jaxpr, parameter_sizes: Mapping[core.Var, int]
) -> Iterator[tuple[int, int, int]]:
    """(macs, published_ops, params) at every marker, in the order of the trace."""
    known, counts, outputs = Known(data={jaxpr.invars[-1]}), Counts(), set(jaxpr.outvars)
    read: set[core.Var] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "optimization_barrier" and outputs.intersection(eqn.outvars):
            params = sum(parameter_sizes[variable] for variable in read)
            yield counts.macs, counts.macs + counts.extra_ops, params
            continue
        count_equation(eqn, known, counts)
        read.update(v for v in eqn.invars if isinstance(v, core.Var) and v in parameter_sizes)
