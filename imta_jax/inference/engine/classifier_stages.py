"""A classifier that was trained here, cut at its exits for the early-exit engine."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.errors import unknown_name
from imta_jax.evaluation import exit_costs
from imta_jax.inference.engine.staged import Rows, StagedNetwork, Weights
from imta_jax.models import MultiExitClassifier, optimize_classifier
from imta_jax.nn.pixels import normalize

# In which a backbone may compute.
DTYPES = ("float32", "bfloat16")


def staged_classifier(
    classifier: MultiExitClassifier,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: Any = jnp.float32,
) -> StagedNetwork:
    """Cuts a classifier at its exits; its weights are copied, later changes to it are not seen.

    Args:
      classifier: phase I or II.
      mean: of the pixels per channel, 0..1; with `std`, images are uint8.
      std: likewise.
      dtype: in which the backbone computes, one of `DTYPES`, as a name or a type. Batch statistics,
        heads and confidences stay float32.

    Raises:
      ValueError: another type.
    """
    dtype = _checked_dtype(dtype)
    classifier = nnx.clone(classifier)
    classifier.eval()
    classifier.compute_dtype = dtype
    graphdef, state = nnx.split(classifier)
    weights, structure = jax.tree.flatten(state)
    # Once and for all, what every call would do again.
    weights = [w.astype(dtype) if w.ndim == 4 else jnp.copy(w) for w in weights]
    pixels = None if mean is None or std is None else (tuple(mean), tuple(std))
    images = np.dtype(np.float32 if pixels is None else np.uint8)
    rows = (jax.ShapeDtypeStruct((1, *classifier.image_shape), images),)
    folded, stages, read_weights = None, [], []
    for i in range(classifier.num_exits):
        run = functools.partial(_run_stage, graphdef, structure, folded, pixels, i)
        read = _read(run, weights, rows)
        stages.append(functools.partial(_run_on_read, run, tuple(read), len(weights)))
        read_weights.append([weights[w] for w in read])
        handed_on, _ = jax.eval_shape(run, weights, rows)
        rows, folded = jax.tree.flatten(handed_on)
    macs = exit_costs(classifier).macs
    return StagedNetwork(
        stages=tuple(stages),
        weights=tuple(read_weights),
        image_shape=classifier.image_shape,
        image_dtype=images,
        macs=macs,
        name=_name(macs, read_weights),
    )


def _checked_dtype(dtype: Any) -> jnp.dtype:
    try:
        found = jnp.dtype(dtype).name
    except TypeError:  # NumPy knows no type of that name
        found = dtype
    if found not in DTYPES:
        raise unknown_name("dtype", found, DTYPES)
    return jnp.dtype(found)


def _run_stage(
    graphdef: nnx.GraphDef,
    structure: Any,
    folded: Any,
    pixels: tuple[Sequence[float], Sequence[float]] | None,
    i: int,
    weights: Weights,
    rows: Rows,
) -> tuple[Any, jax.Array]:
    """Stage and exit i, from and to rows; the first also opens the images."""
    network = nnx.merge(graphdef, jax.tree.unflatten(structure, weights), copy=True)
    network = optimize_classifier(network, lazy=True)
    if i == 0:
        images = normalize(rows[0], *pixels) if rows[0].dtype == jnp.uint8 else rows[0]
        state, carry = network.stem(images), None
    else:
        state, carry = jax.tree.unflatten(folded, rows)
    state, logits, carry = network.advance(i, state, carry)
    return ((state, carry) if i < network.num_exits - 1 else ()), logits


def _read(run: Callable[..., Any], weights: Weights, rows: Rows) -> list[int]:
    """Which of the weights a stage reads."""
    jaxpr = jax.make_jaxpr(run)(weights, rows).jaxpr
    read = {id(atom) for eqn in jaxpr.eqns for atom in eqn.invars}
    return [w for w, variable in enumerate(jaxpr.invars[: len(weights)]) if id(variable) in read]


def _run_on_read(
    run: Callable[..., Any], read: Sequence[int], count: int, weights: Weights, rows: Rows
) -> tuple[Rows, jax.Array]:
    """A stage that is given only the weights it reads."""
    everything: list[Any] = [None] * count
    for w, value in zip(read, weights, strict=True):
        everything[w] = value
    handed_on, logits = run(everything, rows)
    return tuple(jax.tree.leaves(handed_on)), logits


def _name(macs: np.ndarray, weights: Sequence[Weights]) -> str:
    """A digest of what decides how long each stage takes: multiply-adds, weights' shapes, types."""
    shapes = [[(w.shape, str(w.dtype)) for w in of_stage] for of_stage in weights]
    return hashlib.sha256(repr((macs.tolist(), shapes)).encode()).hexdigest()[:16]
