"""Makes a `StagedNetwork` from a trained classifier."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int64

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
from imta_jax.errors import InputError, unknown_name
from imta_jax.evaluation import exit_costs
from imta_jax.inference.engine.staged import (
    StagedNetwork,
    StagesAndWeights,
    StageState,
    Weights,
)
from imta_jax.models import MultiExitClassifier, computes_faster_images_last, optimize_classifier
from imta_jax.nn.pixels import normalize
from imta_jax.runtime.prng_keys import is_key
from imta_jax.types import PerChannel

Pixels = tuple[Sequence[float], Sequence[float]]  # mean and std
# Types in which the backbone can compute.
DTYPES = ("float32", "bfloat16")


def staged_classifier(
    classifier: MultiExitClassifier,
    *,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    dtype: Any = jnp.float32,
    transform: EvaluationTransform | None = None,
    images_last: bool | None = None,
) -> StagedNetwork:
    """Splits a classifier at its exits. Batch normalization is folded into the convolutions.

    Args:
      classifier: phase I or II. Its weights are copied.
      mean: per channel, of pixels scaled to 0..1. With `mean` and `std`, images are uint8.
      std: standard deviation per channel.
      dtype: in which the backbone computes, one of `DTYPES`, as a name or a type. BatchNorm
        statistics, heads and confidences stay float32.
      transform: how evaluation makes the network's input from an image. Images of the size before
        padding are then accepted, and its mean and std are used unless others are given.
      images_last: whether larger batches are computed with the images on the last axis. By default
        on a CPU, for networks and images for which that is faster.

    Raises:
      ValueError: unknown `dtype`, a transform to another image shape, or a network that draws
        random numbers in inference mode.
    """
    dtype = _check_dtype(dtype)
    if transform is not None:
        transform = _check_transform(transform, classifier, mean, std)
        mean, std = transform.mean, transform.std
    classifier = nnx.clone(classifier)
    classifier.eval()
    classifier.compute_dtype = dtype
    pixels = None if mean is None or std is None else (tuple(mean), tuple(std))
    first = _stages_of(optimize_classifier(classifier, "early exit"), pixels, dtype)
    transposed = _images_last(classifier, images_last)
    last = None if transposed is None else _stages_of(transposed, pixels, dtype)
    macs = exit_costs(classifier).macs
    height, width, channels = classifier.image_shape
    return StagedNetwork(
        stages=first.stages,
        weights=first.weights,
        image_shape=(height, width, channels),
        image_dtype=_image_dtype(pixels),
        macs=macs,
        name=_digest(macs, [*first.weights, *(last.weights if last else ())]),
        transform=transform,
        images_last=last,
    )


def _images_last(
    classifier: MultiExitClassifier, choice: bool | None
) -> MultiExitClassifier | None:
    """The form with the images on the last axis, if it is chosen or faster on this device."""
    if choice is None:
        choice = jax.default_backend() == "cpu" and computes_faster_images_last(classifier)
    return optimize_classifier(classifier, "early exit", images_last=True) if choice else None


def _stages_of(
    classifier: MultiExitClassifier, pixels: Pixels | None, dtype: np.dtype
) -> StagesAndWeights:
    """The stages of a packed classifier and the weights that each reads."""
    graphdef, variables = nnx.split(classifier)
    weights, structure = jax.tree.flatten(variables)
    weights = [_weight(w, dtype) for w in weights]
    state = (jax.ShapeDtypeStruct((1, *classifier.image_shape), _image_dtype(pixels)),)
    state_structure, stages, stage_weights = None, [], []
    for i in range(classifier.num_exits):
        run = functools.partial(_run_stage, graphdef, structure, state_structure, pixels, i)
        indices, next_state = _trace(run, weights, state)
        _check_no_keys(variables, weights, indices, i)
        stages.append(functools.partial(_run_on_subset, run, tuple(indices), len(weights)))
        stage_weights.append([weights[w] for w in indices])
        leaves, state_structure = jax.tree.flatten(next_state)
        state = tuple(leaves)
    return StagesAndWeights(tuple(stages), tuple(stage_weights))


def _image_dtype(pixels: Pixels | None) -> np.dtype:
    return np.dtype(np.float32 if pixels is None else np.uint8)


def _check_transform(
    transform: EvaluationTransform,
    classifier: MultiExitClassifier,
    mean: PerChannel | None,
    std: PerChannel | None,
) -> EvaluationTransform:
    """The transform with the given mean and std, if its image shape is the classifier's."""
    if transform.image_shape != tuple(classifier.image_shape):
        raise InputError(
            f"transform.image_shape is {transform.image_shape}; expected "
            f"{tuple(classifier.image_shape)}, the network's"
        )
    statistics = {"mean": mean, "std": std}
    return replace(transform, **{k: tuple(v) for k, v in statistics.items() if v is not None})


def _check_dtype(dtype: Any) -> np.dtype:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:  # not a NumPy type name
        name = dtype
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return jnp.dtype(name)


def _weight(x: Any, dtype: np.dtype) -> jax.Array:
    """A copy of a variable's array. Kernels are cast here once instead of in every call."""
    x = jnp.asarray(x)  # a variable may hold a Python number
    kernel = x.ndim == 4 and jnp.issubdtype(x.dtype, jnp.floating)
    if kernel and x.dtype != dtype:
        return x.astype(dtype)
    return jax.device_put(x, may_alias=False)  # `jnp.copy` compiles a program per shape


def _check_no_keys(
    variables: nnx.State, weights: Sequence[Array], indices: Sequence[int], stage: int
) -> None:
    """Raises an InputError if a stage reads a PRNG key: its logits would be random."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(variables))]
    for index in indices:
        if is_key(weights[index]):
            name = jax.tree_util.keystr(paths[index], simple=True, separator=".")
            raise InputError(
                f"stage {stage + 1} draws random numbers from {name} in inference mode; expected a"
                " layer that is deterministic after classifier.eval(), as nnx.Dropout is"
            )


def _run_stage(
    graphdef: nnx.GraphDef,
    structure: Any,
    state_structure: Any,
    pixels: Pixels | None,
    i: int,
    weights: Sequence[Array | None],
    state: StageState,
) -> tuple[Any, Float[Array, "N K"]]:
    """Runs stage and exit i on flat state. Stage 0 also normalizes the images and runs the stem.

    Weights that the stage does not read may be None.
    """
    network = nnx.merge(graphdef, jax.tree.unflatten(structure, weights), copy=True)
    if i == 0:
        (images,) = state
        if images.dtype == jnp.uint8 and pixels is not None:
            images = normalize(images, *pixels)
        maps, carry = network.stem(images), None
    else:
        maps, carry = jax.tree.unflatten(state_structure, state)
    maps, logits, carry = network.advance(i, maps, carry)
    return ((maps, carry) if i < network.num_exits - 1 else ()), logits


def _trace(run: Callable[..., Any], weights: Weights, state: Any) -> tuple[list[int], Any]:
    """Indices of the weights that a stage reads, and the shapes of the next state."""
    closed, (next_state, _) = jax.make_jaxpr(run, return_shape=True)(weights, state)
    jaxpr = closed.jaxpr
    read = {id(atom) for eqn in jaxpr.eqns for atom in eqn.invars}
    indices = [w for w, variable in enumerate(jaxpr.invars[: len(weights)]) if id(variable) in read]
    return indices, next_state


def _run_on_subset(
    run: Callable[..., Any],
    indices: Sequence[int],
    num_weights: int,
    weights: Weights,
    state: StageState,
) -> tuple[StageState, Float[Array, "N K"]]:
    """Runs a stage with only the weights that it reads."""
    all_weights: list[Any] = [None] * num_weights
    for w, value in zip(indices, weights, strict=True):
        all_weights[w] = value
    next_state, logits = run(all_weights, state)
    return tuple(jax.tree.leaves(next_state)), logits


def _digest(macs: Int64[np.ndarray, " E"], weights: Sequence[Weights]) -> str:
    """A digest of what determines run times: multiply-adds, weight shapes and dtypes."""
    shapes = [[(w.shape, str(w.dtype)) for w in of_stage] for of_stage in weights]
    return hashlib.sha256(repr((macs.tolist(), shapes)).encode()).hexdigest()[:16]
