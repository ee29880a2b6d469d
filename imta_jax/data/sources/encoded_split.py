"""From an index of encoded images to a split: without the bad ones, decoded where asked for."""

import logging
import os

import numpy as np

from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.indexing import Indexed
from imta_jax.data.pipeline.tf_pipeline import decode_all
from imta_jax.data.source_validation import SourceSplit
from imta_jax.data.sources.request import SourceRequest

_log = logging.getLogger(__name__)
_NAMED_AT_MOST = 10


def source_split(indexed: Indexed, request: SourceRequest, where: str) -> SourceSplit:
    """Leaves out, and names, what does not decode; decodes the rest if it is to be arrays.

    Args:
      indexed: all images of the split.
      request: `encoded` and `max_undecodable`.
      where: the split, for messages.

    Raises:
      ValueError: no image, too many that do not decode, or sizes that differ in what is to
        become one array.
    """
    bad = np.flatnonzero(~indexed.decodable)
    if len(bad):
        _report_bad(indexed, bad, request.max_undecodable, where)
    good = np.flatnonzero(indexed.decodable)
    if len(good) == 0:
        raise ValueError(f"{where} has no image")
    images, labels = indexed.images[good], indexed.labels[good]
    if request.encoded:
        return SourceSplit(images, labels, len(bad))
    _check_one_size(images, where)
    return SourceSplit(decode_all(images), labels, len(bad))


def _report_bad(indexed: Indexed, bad: np.ndarray, most: float, where: str) -> None:
    total = len(indexed.decodable)
    names = [_named(indexed.images.name(i)) for i in bad[:_NAMED_AT_MOST]]
    more = f" and {len(bad) - len(names)} more" if len(bad) > len(names) else ""
    told = f"{len(bad)} of {total} images of {where} do not decode: {', '.join(names)}{more}"
    if len(bad) > most * total:
        raise ValueError(
            f"{told}; that is more than config.data.max_undecodable, {most:g} of all: mend or"
            " remove them, or raise it"
        )
    _log.warning("%s; they are skipped", told)


def _named(name: str) -> str:
    """A file's name, and why it cannot even be read, if so; another kind of name as it is."""
    if not os.path.lexists(name):  # a record of a file, or in a bucket
        return name
    if not os.path.isfile(name):
        return f"{name} (a folder, or a link that leads to no file)"
    return name if os.access(name, os.R_OK) else f"{name} (this user may not read it)"


def _check_one_size(images: EncodedImages, where: str) -> None:
    other = np.flatnonzero((images.sizes != images.sizes[0]).any(axis=1))
    if len(other):
        first, here = images.sizes[0].tolist(), images.sizes[other[0]].tolist()
        raise ValueError(
            f"{where}: {images.name(other[0])} is {here} pixels (height, width) but"
            f" {images.name(0)} is {first}; images of many sizes need"
            " config.data.preprocessing=random_area_crop (as in configs/imagenet.py), which brings"
            " all to config.data.image_size"
        )
