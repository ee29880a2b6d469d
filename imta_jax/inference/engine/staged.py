"""The interface between a network and the early-exit engine: one function per exit.

`classifier_stages` makes a `StagedNetwork` from a trained classifier, `export.loader` makes one
from an exported folder. Between two exits, a batch is a tuple of arrays with the batch axis first,
or last in 4-D arrays of `images_last`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, Shaped

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
from imta_jax.errors import InputError
from imta_jax.inference.engine.staged_rule import StagedRule, split_state, staged_rule

if TYPE_CHECKING:
    from imta_jax.techniques.exit_rules import ExitRule

StageState = tuple[Shaped[Array, "..."], ...]
Weights = Sequence[Array]
# Smaller batches are computed with the images first. See docs/results/cpu_inference.md.
MIN_IMAGES_LAST = 12
Stage = Callable[[Weights, StageState], tuple[StageState, Float[Array, "N K"]]]
# Also returns the score of the exit rule, [N].
ScoredStage = Callable[
    [Weights, StageState], tuple[StageState, Float[Array, "N K"], Float[Array, " N"] | None]
]


@dataclasses.dataclass(frozen=True)
class StagesAndWeights:
    """One form of a network.

    Attributes:
      stages: see `StagedNetwork`.
      weights: per exit, the arrays that its stage reads.
    """

    stages: tuple[Stage, ...]
    weights: tuple[Weights, ...]


@dataclasses.dataclass(frozen=True)
class StagedNetwork:
    """A multi-exit network as one function per exit.

    Attributes:
      stages: per exit, a function (weights, state) -> (next state, logits [N, K] float32) that can
        be traced at any batch size N. The state of the first stage is the images, the next state of
        the last stage is empty.
      weights: per exit, the arrays that its stage reads.
      image_shape: (H, W, C).
      image_dtype: uint8 if the first stage normalizes pixels, else float32.
      macs: multiply-adds per image up to each exit.
      name: a digest of costs and weight shapes. Equal names mean equal run times.
      transform: how evaluation makes the network's input from an image; None if unknown.
      rule: the exit rule; None for the confidence, the highest softmax probability.
      profiles: values of `StageProfile`, measured on this kind of machine; an export may have them.
      images_last: the same network for larger batches on one CPU, which computes it faster. Every
        4-D array of the state is [C, H, W, N]. None if there is no such form.
    """

    stages: tuple[Stage, ...]
    weights: tuple[Weights, ...]
    image_shape: tuple[int, int, int]
    image_dtype: np.dtype
    macs: Int64[np.ndarray, " E"]
    name: str
    transform: EvaluationTransform | None = None
    rule: StagedRule | None = None
    images_last: StagesAndWeights | None = None
    profiles: tuple[Any, ...] = ()

    @property
    def num_exits(self) -> int:
        """Number of exits E."""
        return len(self.stages)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        images = (jax.ShapeDtypeStruct((1, *self.image_shape), self.image_dtype),)
        _, logits = jax.eval_shape(self.stages[0], self.weights[0], images)
        return logits.shape[1]

    def has_images_last(self, batch_size: int) -> bool:
        """Whether a batch of this size is computed with the images on the last axis."""
        return self.images_last is not None and batch_size >= MIN_IMAGES_LAST

    def scored_stages(self, batch_size: int = 1) -> tuple[ScoredStage, ...]:
        """Per exit, its stage with the exit rule, whose carry is the end of the state.

        The score is None for the confidence.
        """
        form = self.images_last if self.has_images_last(batch_size) else self
        assert form is not None
        return tuple(
            functools.partial(_run_scored, stage, self.rule, i)
            for i, stage in enumerate(form.stages)
        )

    def weights_for(self, batch_size: int) -> tuple[Weights, ...]:
        """The arguments of `scored_stages(batch_size)`."""
        form = self.images_last if self.has_images_last(batch_size) else self
        assert form is not None
        return form.weights

    def state_shapes(self, batch_size: int = 1) -> list[tuple[jax.ShapeDtypeStruct, ...]]:
        """Shapes of the state between exits.

        Returns:
          Per exit but the last, the arrays that its stage and the exit rule return.
        """
        if batch_size not in self._state_shapes:
            self._state_shapes[batch_size] = self._trace_state_shapes(batch_size)
        return self._state_shapes[batch_size]

    @functools.cached_property
    def _state_shapes(self) -> dict[int, list[tuple[jax.ShapeDtypeStruct, ...]]]:
        return {}  # by batch size

    def _trace_state_shapes(self, batch_size: int) -> list[tuple[jax.ShapeDtypeStruct, ...]]:
        images = jax.ShapeDtypeStruct((batch_size, *self.image_shape), self.image_dtype)
        state: tuple[jax.ShapeDtypeStruct, ...] = (images,)
        shapes = []
        stages, weights = self.scored_stages(batch_size), self.weights_for(batch_size)
        for stage, stage_weights in zip(stages, weights, strict=True):
            state, _, _ = jax.eval_shape(stage, stage_weights, state)
            shapes.append(state)
        return shapes[:-1]

    def validate_images(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Checks images, converts floating-point images to float32 and pads smaller images.

        Args:
          images: [N, H, W, C], normalized floats, or uint8 if `image_dtype` is uint8. With a
            `transform`, [N, h, w, C] of its `source_size` are padded as in training.

        Raises:
          ValueError: wrong shape or dtype, or a pixel that is not finite.
        """
        images = np.asarray(images)
        self._check_shape(images.shape)
        if images.dtype == np.uint8 and self.image_dtype != np.uint8:
            raise InputError(
                "uint8 images need `mean` and `std` at construction; pass both, or pass normalized "
                "floats"
            )
        if images.dtype == np.uint8:
            return self._padded(images, black=0)
        if not np.issubdtype(images.dtype, np.floating):
            raise InputError(
                f"expected images as normalized floats or uint8 pixels; found {images.dtype}"
            )
        with np.errstate(over="ignore"):  # overflow gives infinity, which is rejected below
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            bad = np.argwhere(~np.isfinite(images))[0].tolist()
            raise InputError(
                f"image {bad[0]} has a pixel that is not finite, at {tuple(bad[1:])}; expected "
                "normalized floats"
            )
        if self.transform is None:
            return images
        black = [-m / s for m, s in zip(self.transform.mean, self.transform.std, strict=True)]
        return self._padded(images, black=np.asarray(black, np.float32))

    def _padded(self, images: np.ndarray, black: Any) -> np.ndarray:
        return images if self.transform is None else self.transform.pad(images, black)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        accepted = [self.image_shape]
        if self.transform is not None and self.transform.resize is None:
            accepted.insert(0, (*self.transform.source_size, self.image_shape[2]))
        if len(shape) == 4 and shape[1:] in accepted:
            return
        shapes = [
            f"[N, {', '.join(map(str, image_shape))}]" for image_shape in dict.fromkeys(accepted)
        ]
        if self.transform is None:
            fix = "preprocess them as in evaluation; with `transform`, images are padded"
        elif self.transform.resize is None:
            fix = f"accepted are {self.transform.accepted()}"
        else:
            fix = "`transform.apply` resizes and crops an image as evaluation did"
        raise InputError(f"expected images {' or '.join(shapes)}; found {shape}; {fix}")

    def logits(
        self, weights: Sequence[Weights], images: Shaped[Array, "N H W C"]
    ) -> Float[Array, "E N K"]:
        """Computes the logits of all exits. Call it under `jax.jit`.

        The weights are an argument because XLA folds constants into each other, which rounds
        differently in bfloat16 than the engine's programs do.
        """
        state: StageState = (images,)
        collected = []
        for stage, stage_weights in zip(self.stages, weights, strict=True):
            state, logits = stage(stage_weights, state)
            collected.append(logits)
        return jnp.stack(collected)


def with_exit_rule(
    network: StagedNetwork, rule: "str | Callable[..., Any] | ExitRule"
) -> StagedNetwork:
    """Returns a network with another exit rule.

    Args:
      network: left unchanged.
      rule: see `techniques.exit_rules.get_exit_rule`.

    Raises:
      ValueError: an unknown rule, or a rule that returns another shape.
    """
    # Imported here because an exported network runs without the code of techniques.
    from imta_jax.techniques.exit_rules import get_exit_rule

    exit_rule = get_exit_rule(rule)
    staged = None
    if not exit_rule.is_default:
        staged = staged_rule(exit_rule, network.num_exits, network.num_classes)
    return dataclasses.replace(network, rule=staged)


def _run_scored(
    stage: Stage, rule: StagedRule | None, i: int, weights: Weights, state: StageState
) -> tuple[StageState, Float[Array, "N K"], Float[Array, " N"] | None]:
    """Runs stage i and the exit rule."""
    if rule is None:
        return (*stage(weights, state), None)
    maps, carry = split_state(state, rule.carry_sizes[i])
    maps, logits = stage(weights, maps)
    score, carry = rule.scores[i](logits, carry)
    return (*maps, *carry), logits, score
