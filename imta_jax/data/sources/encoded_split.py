"""From an index of encoded images to a split, without images that do not decode."""

import logging
import os

import numpy as np

from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.indexing import Indexed
from imta_jax.data.pipeline.tf_pipeline import decode_all
from imta_jax.data.source_validation import SourceSplit
from imta_jax.data.sources.request import SourceRequest
from imta_jax.errors import InputError

_log = logging.getLogger(__name__)
_MAX_NAMED_IMAGES = 10


def source_split(indexed: Indexed, request: SourceRequest, where: str) -> SourceSplit:
    """Skips images that do not decode; decodes the others unless they are to stay encoded.

    Args:
      indexed: all images of the split.
      request: `encoded` and `max_undecodable` are used.
      where: the split, for messages.

    Raises:
      ValueError: No image, too many images that do not decode, or images of different sizes that
        are to become an array.
    """
    bad = np.flatnonzero(~indexed.decodable)
    if len(bad):
        _report_undecodable(indexed, bad, request.max_undecodable, where)
    good = np.flatnonzero(indexed.decodable)
    if len(good) == 0:
        raise InputError(f"{where} has 0 images, expected at least 1")
    images, labels = indexed.images[good], indexed.labels[good]
    if request.encoded:
        return SourceSplit(images, labels, len(bad))
    _check_one_size(images, where)
    return SourceSplit(decode_all(images), labels, len(bad))


def _report_undecodable(indexed: Indexed, bad: np.ndarray, limit: float, where: str) -> None:
    """Raises a ValueError if more than a fraction `limit` of the images is bad, else warns."""
    total = len(indexed.decodable)
    names = [_with_reason(indexed.images.name(i)) for i in bad[:_MAX_NAMED_IMAGES]]
    more = f" and {len(bad) - len(names)} more" if len(bad) > len(names) else ""
    found = f"{len(bad)} of {total} images of {where} do not decode: {', '.join(names)}{more}"
    if len(bad) > limit * total:
        raise InputError(
            f"{found}; config.data.max_undecodable is {limit:g}: replace or remove these images,"
            " or raise it"
        )
    _log.warning("%s; they are skipped", found)


def _with_reason(name: str) -> str:
    """The name of an image file, with the reason if it cannot even be opened."""
    if not os.path.lexists(name):  # a record, or a file in a bucket
        return name
    if not os.path.isfile(name):
        return f"{name} (a folder or a broken link)"
    return name if os.access(name, os.R_OK) else f"{name} (no read permission)"


def _check_one_size(images: EncodedImages, where: str) -> None:
    other = np.flatnonzero((images.sizes != images.sizes[0]).any(axis=1))
    if len(other):
        first, differing = images.sizes[0].tolist(), images.sizes[other[0]].tolist()
        raise InputError(
            f"{where}: {images.name(other[0])} has {differing} pixels (height, width), but"
            f" {images.name(0)} has {first}; set config.data.preprocessing=random_area_crop (see"
            " configs/imagenet.py), which resizes images to config.data.image_size"
        )
