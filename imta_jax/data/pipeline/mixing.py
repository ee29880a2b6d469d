"""Mixup and cutmix, within the compiled step.

Both mix each image with the next one of the batch, whose order is random, and mix the labels in the
same proportion. Every image has its own proportion.

- Mixup (Zhang et al., ICLR 2018): lambda * image + (1 - lambda) * other, lambda ~ Beta(a, a).
  Pixels are rounded to uint8.
- CutMix (Yun et al., ICCV 2019): a rectangle of the other image, with a fraction 1 - lambda of the
  area and a uniform center. It is clipped at the borders; labels use the fraction of the pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8


def mix_images(
    key: jax.Array,
    images: UInt8[Array, "N H W C"],
    labels: Int[Array, " N"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    num_classes: int,
) -> tuple[UInt8[Array, "N H W C"], Float[Array, "N K"]]:
    """Mixes each image by mixup or cutmix; with both, by one of them with probability 1/2.

    Args:
      key: a PRNG key.
      images: a batch in random order.
      labels: classes, from 0.
      mixup_alpha: parameter of the Beta distribution of mixup; 0 for no mixup.
      cutmix_alpha: the same of cutmix.
      num_classes: K.

    Returns:
      Images, and the probability of each class.
    """
    for_mixup, for_cutmix, for_choice = jax.random.split(key, 3)
    others, count = jnp.roll(images, 1, axis=0), images.shape[0]
    mixed, weight = images, jnp.zeros(count)
    if mixup_alpha > 0:
        weight = _symmetric_beta(for_mixup, mixup_alpha, count)
        mixed = mixup(images, others, weight)
    if cutmix_alpha > 0:
        inside = random_rectangles(for_cutmix, cutmix_alpha, images.shape)
        pasted = jnp.where(inside[..., None], others, images)
        use = jax.random.bernoulli(for_choice, 0.5 if mixup_alpha > 0 else 1.0, (count,))
        mixed = jnp.where(use[:, None, None, None], pasted, mixed)
        weight = jnp.where(use, inside.mean(axis=(1, 2)), weight)
    return mixed, mixed_labels(labels, jnp.roll(labels, 1), weight, num_classes)


def mixup(
    images: UInt8[Array, "N H W C"],
    others: UInt8[Array, "N H W C"],
    weight: Float[Array, " N"],
) -> UInt8[Array, "N H W C"]:
    """(1 - weight) * images + weight * others, rounded."""
    first = images.astype(jnp.float32)
    change = others.astype(jnp.float32) - first
    return jnp.round(first + weight[:, None, None, None] * change).astype(jnp.uint8)


def mixed_labels(
    labels: Int[Array, " N"], others: Int[Array, " N"], weight: Float[Array, " N"], num_classes: int
) -> Float[Array, "N K"]:
    """Probabilities of classes: 1 - weight of the image's class, and weight of the other's."""
    first, second = (jax.nn.one_hot(x, num_classes) for x in (labels, others))
    return (1 - weight)[:, None] * first + weight[:, None] * second


def random_rectangles(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> Bool[Array, "N H W"]:
    """Masks of cutmix: rectangles of the image's aspect ratio, clipped at its borders."""
    count, height, width = shape[:3]
    for_area, for_center = jax.random.split(key)
    side = jnp.sqrt(_symmetric_beta(for_area, alpha, count))
    center = jax.random.uniform(for_center, (2, count))

    def interval(center: Float[Array, " N"], length: int) -> Bool[Array, "N L"]:
        extent = jnp.floor(side * length)[:, None]
        first = jnp.floor(center[:, None] * length) - jnp.floor(extent / 2)
        position = jnp.arange(length)[None]
        return (position >= first) & (position < first + extent)

    return interval(center[0], height)[:, :, None] & interval(center[1], width)[:, None, :]


def _symmetric_beta(key: jax.Array, alpha: float, count: int) -> Float[Array, " N"]:
    """Samples of Beta(alpha, alpha)."""
    if alpha == 1:  # The usual cutmix; compiles in a fraction of the time.
        return jax.random.uniform(key, (count,))
    return jax.random.beta(key, alpha, alpha, (count,))
