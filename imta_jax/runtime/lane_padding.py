"""Padding of small batches on TPUs, where the images of a batch fill the lanes of registers."""

LANES = 128  # images in one vector register, where the batch is the fastest axis
_REPORTED_SHARE = 0.2


def lanes_padded(images: int) -> int:
    """Images that a TPU chip computes for a batch, with padding."""
    return -(-images // LANES) * LANES


def padding_hint(field: str, batch_size: int, chips: int, parts: int = 1) -> str | None:
    """A message if a TPU pads the images of a chip by more than a fifth; None otherwise.

    Args:
      field: config field of the batch size.
      batch_size: images per step over all chips.
      chips: number of chips.
      parts: parts of the batch that are computed one after the other.
    """
    images = batch_size // (chips * parts)
    padded = lanes_padded(images)
    share = 1 - images / padded
    if share <= _REPORTED_SHARE:
        return None
    return (
        f"{field}={batch_size} gives each chip {images} images at a time, which a TPU pads to"
        f" {padded}: {share:.0%} of its memory and time for feature maps are padding; use a"
        f" multiple of {LANES * chips * parts}, for example {field}={padded * chips * parts}"
    )
