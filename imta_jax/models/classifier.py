"""Multi-exit classifier: a backbone, heads, and the driver that runs both.

The driver applies gradient equilibrium and feature detachment between a stage and its readers, so
backbones do not implement them. Training and evaluation compute all exits at once (`__call__`,
`features`). Inference calls `stem` and `advance` and may stop after any exit.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from imta_jax.errors import InputError
from imta_jax.techniques import FeatureDetachment, split_gradient

# Feature maps, finest scale first.
State = tuple[Any, ...]
# tap(i, state) -> state, called on the output of stage i (from 0).
Tap = Callable[[int, State], State]

_NOT_DETACHED = FeatureDetachment()


@runtime_checkable
class Backbone(Protocol):
    """The contract of a network that becomes a multi-exit classifier.

    Attributes:
      num_exits: number of exits E.
      feature_widths: channels of the pooled features, per exit.

    A backbone whose maps do not have the channels on the last axis has an attribute `channel_axis`.
    """

    num_exits: int
    feature_widths: tuple[int, ...]

    def stem(self, images: Float[Array, "N H W C"]) -> State:
        """Maps images to feature maps [N, H', W', C'], finest scale first."""
        ...

    def stage(self, i: int, state: State) -> State:
        """Runs the block before exit i (from 0)."""
        ...

    def exit_features(self, i: int, state: State) -> Float[Array, "N F"]:
        """Pooled features of exit i, with F = feature_widths[i]."""
        ...


@runtime_checkable
class LayeredBackbone(Protocol):
    """A backbone whose stages are sequences of layers, which can be recomputed one by one."""

    def layers(self, i: int) -> Sequence[nnx.Module]:
        """The layers of stage i (from 0)."""
        ...

    def apply_layer(self, layer: Any, state: State) -> State:
        """Runs a layer; stage i runs its layers one after the other."""
        ...


@runtime_checkable
class Heads(Protocol):
    """Maps features to logits one exit at a time; see `techniques.inline_collaboration`."""

    def __call__(
        self, i: int, features: Float[Array, "N F"], carry: Any
    ) -> tuple[Float[Array, "N K"], Any]:
        """Maps the features of exit i and the previous exit's carry to logits and a carry."""
        ...


def run_heads(heads: Heads, features: Sequence[Float[Array, "N _"]]) -> Float[Array, "E N K"]:
    """Logits of all exits, from the features of each."""
    carry, collected = None, []
    for i, pooled in enumerate(features):
        logits, carry = heads(i, pooled, carry)
        collected.append(logits)
    return jnp.stack(collected)


class MultiExitClassifier(nnx.Module):
    """A backbone with heads; in phase II also the phase-I heads.

    Attributes:
      backbone: see `Backbone`.
      heads: see `Heads`.
      phase_one_heads: the frozen phase-I heads, a possible teacher in phase II; None in phase I.
      num_exits: number of exits E.
      num_classes: number of classes K.
      image_shape: (H, W, C) of the images.
      compute_dtype: dtype of the feature maps, float32 by default. Parameters, batch statistics,
        heads and logits are always float32.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        phase_one_heads: Heads | None = None,
    ):
        self.backbone = backbone
        self.heads = heads
        self.phase_one_heads: Heads | None = nnx.data(phase_one_heads)
        self.num_exits = backbone.num_exits
        self.num_classes = num_classes
        height, width, channels = image_shape
        self.image_shape = (height, width, channels)
        self.compute_dtype = jnp.float32

    def __call__(
        self, images: jax.Array | np.ndarray, equilibrium: str = "off"
    ) -> Float[Array, "E N K"]:
        """Logits of all exits, float32.

        Args:
          images: normalized floats [N, H, W, C].
          equilibrium: feature maps to which gradient equilibrium applies: "off", "coarsest" or
            "all". It changes gradients only.

        Raises:
          ValueError: images of another shape or dtype, or an unknown `equilibrium`.
        """
        return self.logits(self.features(images, equilibrium))

    def features(
        self,
        images: jax.Array | np.ndarray,
        equilibrium: str = "off",
        *,
        detachment: FeatureDetachment = _NOT_DETACHED,
        tap: Tap | None = None,
        rematerialize: bool = False,
        rematerialize_layers: bool = False,
    ) -> tuple[Float[Array, "N _"], ...]:
        """Pooled features of all exits.

        Args:
          images: normalized floats [N, H, W, C].
          equilibrium: see `__call__`.
          detachment: gradients that stop at a stage's output. It changes gradients only, after
            gradient equilibrium scaled them.
          tap: called as `tap(i, state) -> state` on the output of stage i, before gradient
            equilibrium, detachment and exit i. Use it to record, replace or perturb feature maps.
          rematerialize: recompute the maps within each stage in the backward pass instead of
            storing them: less memory, more time, equal values.
          rematerialize_layers: the same for the maps within each layer. The inputs of layers are
            stored. A backbone that is not a `LayeredBackbone` recomputes each stage.
        """
        state, collected = self.stem(images), []
        channel_axis = getattr(self.backbone, "channel_axis", -1)
        for i in range(self.num_exits):
            state = self._stage(i, state, rematerialize, rematerialize_layers)
            if tap is not None:
                state = tap(i, state)
            for_exit, state = split_gradient(state, i, self.num_exits, equilibrium)
            if i + 1 < self.num_exits:  # The last stage has one reader.
                for_exit, state = detachment(for_exit, state, channel_axis=channel_axis)
            collected.append(self._exit_features(i, for_exit))
        return tuple(collected)

    def _exit_features(self, i: int, state: State) -> Float[Array, "N F"]:
        features = self.backbone.exit_features(i, state)
        chex.assert_shape(features, (None, self.backbone.feature_widths[i]))
        return features

    def _stage(self, i: int, state: State, recompute: bool, recompute_layers: bool) -> State:
        backbone = self.backbone
        if recompute_layers and isinstance(backbone, LayeredBackbone):
            run = nnx.remat(lambda layer, state: backbone.apply_layer(layer, state))
            for layer in backbone.layers(i):
                state = run(layer, state)
            return state
        if recompute or recompute_layers:
            return nnx.remat(lambda backbone, state: backbone.stage(i, state))(backbone, state)
        return backbone.stage(i, state)

    def logits(self, features: tuple[Float[Array, "N _"], ...]) -> Float[Array, "E N K"]:
        """Logits of all exits in float32, from the features of all exits."""
        logits = run_heads(self.heads, features)
        chex.assert_shape(logits, (self.num_exits, None, self.num_classes))
        return logits.astype(jnp.float32)

    def phase_one_logits(self, features: tuple[Float[Array, "N _"], ...]) -> Float[Array, "N K"]:
        """Logits of the last exit with the phase-I heads, the published code's teacher.

        Raises:
          ValueError: this is a phase-I classifier.
        """
        if self.phase_one_heads is None:
            raise InputError(
                "phase_one_heads is None: this is a phase-I classifier; make a phase-II classifier "
                "with imta_jax.models.with_collaborative_heads"
            )
        return run_heads(self.phase_one_heads, features)[-1].astype(jnp.float32)

    def stem(self, images: jax.Array | np.ndarray) -> State:
        """Checks normalized images [N, H, W, C] and returns the state before the first stage."""
        _check_images(images, self.image_shape)
        return self.backbone.stem(jnp.asarray(images, self.compute_dtype))

    def advance(self, i: int, state: State, carry: Any) -> tuple[State, Float[Array, "N K"], Any]:
        """Runs stage i and exit i (from 0): one step of adaptive inference.

        Args:
          i: stage and exit.
          state: return value of `stem` or of the previous `advance`.
          carry: carry of the previous `advance`; None at the first.

        Returns:
          (state, float32 logits, carry).
        """
        state = self.backbone.stage(i, state)
        return state, *self.exit_logits(i, state, carry)

    def exit_logits(self, i: int, state: State, carry: Any) -> tuple[Float[Array, "N K"], Any]:
        """Runs exit i (from 0) on the output of stage i; see `advance`.

        Returns:
          (float32 logits, carry).
        """
        logits, carry = self.heads(i, self._exit_features(i, state), carry)
        chex.assert_shape(logits, (None, self.num_classes))
        return logits.astype(jnp.float32), carry


def _check_images(images: jax.Array | np.ndarray, image_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError unless images are floats [N, *image_shape]."""
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise InputError(
            f"expected images [N, {', '.join(map(str, image_shape))}]; found {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"expected normalized float images, (pixel / 255 - mean) / std; found {images.dtype}"
        )
