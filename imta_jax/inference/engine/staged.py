"""A network cut at its exits: all that early exit needs to know of it.

The engine runs anything of this form: a classifier that was trained here (`classifier_stages`) or
one that was exported (`exported`). Between two exits an image is a row in each of a few arrays.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Rows = tuple[jax.Array, ...]
Weights = Sequence[jax.Array]


@dataclasses.dataclass(frozen=True)
class StagedNetwork:
    """A multi-exit network as functions of rows.

    Attributes:
      stages: per exit a function (weights, rows) -> (rows, logits [N, K] float32), to be traced at
        any N; the first takes images as its only array, the last hands on nothing.
      weights: per exit the arrays that its stage reads.
      image_shape: (H, W, C).
      image_dtype: uint8 where the first stage normalises pixels, else float32.
      macs: int64 [E], cumulative multiply-adds per image.
      name: of the network and its type, the same for the same programs.
    """

    stages: tuple[Callable[[Weights, Rows], tuple[Rows, jax.Array]], ...]
    weights: tuple[Weights, ...]
    image_shape: tuple[int, int, int]
    image_dtype: np.dtype
    macs: np.ndarray
    name: str

    @property
    def num_exits(self) -> int:
        """How many exits it has."""
        return len(self.stages)

    def carried(self) -> list[tuple[jax.ShapeDtypeStruct, ...]]:
        """What an image takes from each exit but the last to the next: arrays [1, ...]."""
        rows = (jax.ShapeDtypeStruct((1, *self.image_shape), self.image_dtype),)
        found = []
        for stage, weights in zip(self.stages, self.weights, strict=True):
            rows, _ = jax.eval_shape(stage, weights, rows)
            found.append(rows)
        return found[:-1]

    def checked(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Images that can be classified: [N, H, W, C], of the network's type, or floats.

        Raises:
          ValueError: images of another shape or type, or with pixels that are not finite.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"expected images [N, {expected}]; found {images.shape}")
        if images.dtype == np.uint8 and self.image_dtype != np.uint8:
            raise ValueError(
                "uint8 images need mean and std at construction; or pass normalised floats"
            )
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"expected normalised floats or uint8 pixels; found {images.dtype}")
        with np.errstate(over="ignore"):  # too large for float32 is infinite there, and refused
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            bad = np.argwhere(~np.isfinite(images))[0].tolist()
            raise ValueError(f"image {bad[0]} has a pixel that is not finite, at {tuple(bad[1:])}")
        return images

    def logits(self, weights: Sequence[Weights], images: jax.Array) -> jax.Array:
        """Logits [E, N, K] of all exits for images [N, H, W, C]; to be called under `jax.jit`.

        The weights are given, as the engine gives them: as constants they would be folded into one
        another, and in bfloat16 that rounds differently.
        """
        rows, collected = (images,), []
        for stage, read in zip(self.stages, weights, strict=True):
            rows, logits = stage(read, rows)
            collected.append(logits)
        return jnp.stack(collected)
