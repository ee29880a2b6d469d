"""Any backbone's network as a table: block by block, its map, multiply-adds and parameters.

The numbers come from tracing one part after the other on one image, for networks that have no plan
as an MSDNet has (`plan_table.py`). `evaluation.exit_costs` traces the whole network; a test holds
the two together.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from imta_jax.models.classifier import MultiExitClassifier, State
from imta_jax.nn.convolution import convolve

_COLUMNS = ("multiply-adds", "parameters")


def traced_rows(classifier: MultiExitClassifier) -> Iterator[dict[str, object]]:
    """One row per stem, block and exit, with its own cost and the running total.

    Args:
      classifier: phase I; left as it is. A backbone without blocks (`stages`, lists of modules that
        map one map to the next) has a row per stage.
    """
    total, number = [0, 0], 0

    def row(stage: object, what: str, state: State, cost: tuple[int, int]) -> dict[str, object]:
        total[:] = [t + c for t, c in zip(total, cost, strict=True)]
        sizes = " ".join("x".join(map(str, x.shape[1:])) for x in state)
        own = dict(zip(_COLUMNS, cost, strict=True))
        so_far = {f"{c} so far": t for c, t in zip(_COLUMNS, total, strict=True)}
        return {"stage": stage, "what": what, "map": sizes} | own | so_far

    images = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
    state, cost = _measure(classifier.backbone, lambda b, x: b.stem(x), images)
    yield row("", "stem", state, cost)
    for i in range(classifier.num_exits):
        for what, module, part in _parts(classifier, i):
            state, cost = _measure(module, part, state)
            number += 1
            yield row(i + 1, what.format(number=number), state, cost)
        features, cost = _measure(classifier, _exit(i), state)
        yield row(i + 1, f"exit {i + 1}", (features,), cost)


def _parts(
    classifier: MultiExitClassifier, i: int
) -> Iterator[tuple[str, nnx.Module, Callable[[Any, State], State]]]:
    """What stage i is made of: a name, a module, and how it maps one state to the next."""
    blocks = getattr(classifier.backbone, "stages", None)
    if blocks is None:
        yield (
            f"stage {i + 1}",
            classifier.backbone,
            lambda backbone, state: backbone.stage(i, state),
        )
        return
    for block in blocks[i]:
        yield "block {number}", block, lambda block, state: (block(state[0]),)


def _exit(i: int) -> Callable[[MultiExitClassifier, State], jax.Array]:
    """Runs exit i: its features [N, width], after its linear layer has been run too."""

    def run(classifier: MultiExitClassifier, state: State) -> jax.Array:
        features = classifier.backbone.exit_features(i, state)
        classifier.heads(i, features, None)
        return features

    return run


def _measure(module: nnx.Module, part: Callable[..., Any], inputs: Any) -> tuple[Any, Any]:
    """The shapes that a part puts out, and its (multiply-adds, parameters)."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)

    def run(leaves: list[jax.Array], inputs: Any) -> Any:
        copy = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), rest, copy=True)
        copy.eval()
        return part(copy, inputs)

    closed, outputs = jax.make_jaxpr(run, return_shape=True)(leaves, inputs)
    jaxpr = closed.jaxpr
    read = {atom for eqn in jaxpr.eqns for atom in eqn.invars if isinstance(atom, core.Var)}
    params = sum(v.aval.size for v in jaxpr.invars[: len(leaves)] if v in read)
    return outputs, (_macs(jaxpr), params)


def _macs(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of the convolutions and matrix products of a jaxpr and of those it calls."""
    count = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if eqn.params.get("name") == convolve.__name__:
            kernel = eqn.invars[1].aval
            count += out.size * (kernel.size // kernel.shape[-1])
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            count += out.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        elif called is not None:
            count += _macs(getattr(called, "jaxpr", called))
    return count
