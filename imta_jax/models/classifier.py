"""A multi-exit classifier: a backbone and heads, and the driver that runs one through the other.

The driver is where gradient equilibrium stands, between a stage and what reads it, so that no
backbone knows of it. Training and evaluation call the classifier for all exits at once; inference
calls `stem` and `advance`, and may stop after any exit.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.techniques import IndependentHeads, split_gradient

State = tuple[jax.Array, ...]
# Called on the feature maps after stage i, before exit i reads them; returns maps to go on with.
Tap = Callable[[int, State], State]


class Backbone(Protocol):
    """What a network has to offer to become a multi-exit classifier.

    Two methods more may be offered for early exit, where an exit does not need all that its stage
    hands on: `stage_until_exit(i, state) -> (state, pending)` and `rest_of_stage(i, pending) ->
    state`, which together are `stage`.

    Attributes:
      num_exits: k.
      feature_widths: channels of the pooled features, one per exit.
    """

    num_exits: int
    feature_widths: tuple[int, ...]

    def stem(self, images: jax.Array) -> State:
        """Maps images [N, H, W, C] to feature maps [N, H', W', C'], finest scale first."""

    def stage(self, i: int, state: State) -> State:
        """Runs the block before exit i, from 0."""

    def exit_features(self, i: int, state: State) -> jax.Array:
        """Pooled features [N, feature_widths[i]] of exit i."""


class Heads(Protocol):
    """Turns features into logits one exit at a time; see `techniques.inline_collaboration`."""

    def __call__(
        self, i: int, features: jax.Array, carry: Any
    ) -> tuple[jax.Array, Any]:  # pragma: no cover - a protocol
        """Maps features [N, width] and the previous exit's carry to logits [N, K] and a carry."""


def run_heads(heads: Heads, features: Sequence[jax.Array]) -> jax.Array:
    """Logits [E, N, K] of heads from the features of all exits, [N, width] each, one by one."""
    carry, collected = None, []
    for i, pooled in enumerate(features):
        logits, carry = heads(i, pooled, carry)
        collected.append(logits)
    return jnp.stack(collected)


class MultiExitClassifier(nnx.Module):
    """A backbone, the heads in use and, in phase II, the phase-I heads kept beside them.

    Attributes:
      backbone: see `Backbone`.
      heads: see `Heads`.
      phase_one_heads: independent heads that may teach (phase II), or None (phase I).
      num_exits, num_classes: k and K.
      image_shape: (H, W, C) the network was built for.
      compute_dtype: of the backbone's maps, float32 unless set; weights, batch statistics, heads
        and logits are float32 whatever it is.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        phase_one_heads: IndependentHeads | None = None,
    ):
        self.backbone = backbone
        self.heads = heads
        self.phase_one_heads = nnx.data(phase_one_heads)
        self.num_exits = backbone.num_exits
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)
        self.compute_dtype = jnp.float32

    def __call__(self, images: jax.Array, equilibrium: str = "off") -> jax.Array:
        """Logits of all exits.

        Args:
          images: normalised floats [N, H, W, C].
          equilibrium: how far gradient equilibrium reaches, "off", "coarsest" or "all"; it changes
            gradients only.

        Returns:
          [E, N, K] float32.

        Raises:
          ValueError: images of another shape or type, an unknown `equilibrium`.
        """
        return self.logits(self.features(images, equilibrium))

    def features(
        self,
        images: jax.Array,
        equilibrium: str = "off",
        *,
        tap: Tap | None = None,
        rematerialize: bool = False,
    ) -> tuple[jax.Array, ...]:
        """Runs the backbone and returns the pooled features of all exits, [N, feature_widths[i]].

        Args:
          images: Normalized floats [N, H, W, C].
          equilibrium: Where gradient equilibrium applies; see `__call__`.
          tap: `tap(i, state) -> state`, called on the output of stage i (from 0) before gradient
            equilibrium and exit i. Use it to record, replace or perturb feature maps.
          rematerialize: Recompute the maps within each stage in the backward pass instead of
            storing them: less memory, more time, equal values.
        """
        state, collected = self.stem(images), []
        for i in range(self.num_exits):
            state = self._stage(i, state, rematerialize)
            if tap is not None:
                state = tap(i, state)
            for_exit, state = split_gradient(state, i, self.num_exits, equilibrium)
            collected.append(self.backbone.exit_features(i, for_exit))
        return tuple(collected)

    def _stage(self, i: int, state: State, rematerialize: bool) -> State:
        if not rematerialize:
            return self.backbone.stage(i, state)
        return nnx.remat(lambda backbone, state: backbone.stage(i, state))(self.backbone, state)

    def logits(self, features: tuple[jax.Array, ...]) -> jax.Array:
        """Logits [E, N, K] in float32 from the features of all exits."""
        return run_heads(self.heads, features).astype(jnp.float32)

    def phase_one_logits(self, features: tuple[jax.Array, ...]) -> jax.Array:
        """Logits [N, K] of the phase-I last exit, the reference code's teacher.

        Raises:
          ValueError: a phase-I classifier, which has no second set of heads.
        """
        if self.phase_one_heads is None:
            raise ValueError(
                "a phase-I classifier keeps no earlier heads; make a phase-II one with "
                "imta_jax.models.with_collaborative_heads"
            )
        logits, _ = self.phase_one_heads(self.num_exits - 1, features[-1], None)
        return logits.astype(jnp.float32)

    def stem(self, images: jax.Array) -> State:
        """Checks and opens: normalised images [N, H, W, C] -> the state before the first stage."""
        _check_images(images, self.image_shape)
        return self.backbone.stem(images.astype(self.compute_dtype))

    def advance(self, i: int, state: State, carry: Any) -> tuple[State, jax.Array, Any]:
        """Runs stage i and exit i (from 0); what one step of adaptive inference computes.

        Args:
          i: the exit.
          state: from `stem` or the previous `advance`.
          carry: from the previous `advance`; None at the first.

        Returns:
          (state, logits [N, K] float32, carry).
        """
        state = self.backbone.stage(i, state)
        return state, *self._exit(i, state, carry)

    def advance_lazily(self, i: int, pending: Any, carry: Any) -> tuple[Any, jax.Array, Any]:
        """As `advance`, but leaves to the next call what the exit does not read.

        Args:
          i: the exit.
          pending: from `stem` or the previous `advance_lazily`.
          carry: from the previous `advance_lazily`; None at the first.

        Returns:
          (pending, logits [N, K] float32, carry).
        """
        if not hasattr(self.backbone, "stage_until_exit"):
            return self.advance(i, pending, carry)
        state = self.backbone.rest_of_stage(i - 1, pending) if i else pending
        state, pending = self.backbone.stage_until_exit(i, state)
        return pending, *self._exit(i, state, carry)

    def _exit(self, i: int, state: State, carry: Any) -> tuple[jax.Array, Any]:
        """Logits [N, K] float32 of exit i from what it reads, and what it hands on."""
        logits, carry = self.heads(i, self.backbone.exit_features(i, state), carry)
        return logits.astype(jnp.float32), carry


def _check_images(images: jax.Array, image_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError unless images are floats [N, *image_shape]."""
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise ValueError(
            f"expected images [N, {', '.join(map(str, image_shape))}]; found {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"expected normalised float images, (pixel / 255 - mean) / std; found {images.dtype}"
        )
