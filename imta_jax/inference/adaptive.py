"""Adaptive inference that really stops: images leave at their exit, the others go on without them.

After each exit the images that stay are gathered into the smallest of a few static batch sizes, so
that nothing is recompiled after the first batches and the saved multiply-adds are not computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.evaluation import exit_costs
from imta_jax.models import MultiExitClassifier
from imta_jax.pixels import normalize


class AdaptivePredictions(NamedTuple):
    """What adaptive inference answers, per image.

    Attributes:
      labels: int32 [N], predicted class.
      exit: int32 [N], index from 0 of the exit that answered.
      confidence: float32 [N], highest softmax probability there.
      macs: int64 [N], multiply-adds spent until then.
    """

    labels: np.ndarray
    exit: np.ndarray
    confidence: np.ndarray
    macs: np.ndarray


class AdaptiveClassifier:
    """Runs a trained multi-exit classifier stage by stage, on one device.

    Args:
      classifier: phase I or II; its weights are copied, later changes to it are not seen.
      thresholds: [E]; an image leaves at the first exit whose confidence (highest softmax
        probability) is at least the threshold; the last exit takes all that come.
      mean: of the pixels per channel, 0..1; with `std`, lets `predict` take uint8 images.
      std: likewise.
      max_batch_size: larger batches are cut; batches run at powers of two up to it.

    Raises:
      ValueError: thresholds of another number of exits or not numbers, a batch size below 1.
    """

    def __init__(
        self,
        classifier: MultiExitClassifier,
        thresholds: Sequence[float] | np.ndarray,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        max_batch_size: int = 256,
    ):
        self.thresholds = np.asarray(thresholds, np.float32)
        if self.thresholds.shape != (classifier.num_exits,):
            raise ValueError(
                f"expected one threshold for each of the {classifier.num_exits} exits; found "
                f"shape {self.thresholds.shape}: these thresholds are of another network"
            )
        if np.isnan(self.thresholds).any():
            raise ValueError(f"thresholds must be numbers; found {self.thresholds}")
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1; found {max_batch_size}")
        self.macs = exit_costs(classifier).macs
        self._image_shape = classifier.image_shape
        self._pixels = None if mean is None or std is None else (tuple(mean), tuple(std))
        self._sizes = _batch_sizes(max_batch_size)
        self._graphdef, state = nnx.split(classifier)
        self._weights = jax.tree.map(jnp.copy, state)
        self._advance = jax.jit(self._run_stage, static_argnums=1)
        self._gather = jax.jit(lambda tree, rows: jax.tree.map(lambda x: x[rows], tree))

    def predict(self, images: np.ndarray | jax.Array) -> AdaptivePredictions:
        """Classifies images, each by the first exit that is confident enough.

        Args:
          images: [N, H, W, C], normalised floats, or uint8 where `mean` and `std` were given.

        Raises:
          ValueError: images of another shape or type, or with pixels that are not finite.
        """
        images = self._checked(images)
        size = self._sizes[-1]
        chunks = [self._predict(images[i : i + size]) for i in range(0, len(images), size)]
        if not chunks:
            empty = (np.zeros(0, dtype) for dtype in (np.int32, np.int32, np.float32, np.int64))
            return AdaptivePredictions(*empty)
        return AdaptivePredictions(
            *(np.concatenate(column) for column in zip(*chunks, strict=True))
        )

    def _checked(self, images: np.ndarray | jax.Array) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self._image_shape:
            raise ValueError(
                f"expected images [N, {', '.join(map(str, self._image_shape))}]; found "
                f"{images.shape}"
            )
        if images.dtype == np.uint8 and self._pixels is None:
            raise ValueError(
                "uint8 images need mean and std at construction; or pass normalised floats"
            )
        if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
            bad = np.argwhere(~np.isfinite(images))[0]
            raise ValueError(f"image {bad[0]} has a pixel that is not finite, at {tuple(bad[1:])}")
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"expected normalised floats or uint8 pixels; found {images.dtype}")
        return images

    def _run_stage(
        self, weights: nnx.State, i: int, state: Any, carry: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """Stage and exit i; the first also opens the images. Compiled once per batch size."""
        network = nnx.merge(self._graphdef, weights, copy=True)
        network.eval()
        if i == 0:
            pixels = state.dtype == jnp.uint8
            state = network.stem(normalize(state, *self._pixels) if pixels else state)
        state, logits, carry = network.advance(i, state, carry)
        return state, carry, logits.argmax(axis=-1), jax.nn.softmax(logits).max(axis=-1)

    def _predict(self, images: np.ndarray) -> AdaptivePredictions:
        """One batch of at most the largest size."""
        count = len(images)
        labels, exits = np.zeros(count, np.int32), np.zeros(count, np.int32)
        confidence = np.zeros(count, np.float32)
        waiting = np.arange(count)
        state: Any = images[_padded(waiting, self._sizes)]
        carry = None
        for i, threshold in enumerate(self.thresholds):
            state, carry, answer, sure = self._advance(self._weights, i, state, carry)
            answer, sure = (np.asarray(x)[: len(waiting)] for x in (answer, sure))
            # Everyone here is overwritten at the next exit, if they go on to it.
            labels[waiting], confidence[waiting], exits[waiting] = answer, sure, i
            staying = np.flatnonzero(sure < threshold)
            if i == len(self.thresholds) - 1 or not len(staying):
                break
            if len(staying) < len(waiting):
                state, carry = self._gather((state, carry), _padded(staying, self._sizes))
                waiting = waiting[staying]
        return AdaptivePredictions(labels, exits, confidence, self.macs[exits])


def _batch_sizes(largest: int) -> tuple[int, ...]:
    """Powers of two below `largest`, and `largest`."""
    powers = [2**n for n in range(largest.bit_length())]
    return (*(size for size in powers if size < largest), largest)


def _padded(rows: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """`rows` up to the smallest size that holds them; the first row stands in for the rest."""
    size = next(size for size in sizes if size >= len(rows))
    return np.concatenate([rows, np.full(size - len(rows), rows[0])])
