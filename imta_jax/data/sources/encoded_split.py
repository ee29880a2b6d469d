"""Indexes image files, and makes splits without the images that are rejected."""

import collections
import dataclasses
import logging
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from imta_jax.data.decoding.exif import displayed_sizes
from imta_jax.data.decoding.pillow_decoder import decode_image
from imta_jax.data.decoding.refusal import MAX_FILE_BYTES, Refusal
from imta_jax.data.findings import SplitFindings
from imta_jax.data.pipeline.decoder import PILLOW
from imta_jax.data.pipeline.encoded import WHOLE_FILE, EncodedImages
from imta_jax.data.pipeline.host_pipeline import decode_all
from imta_jax.data.pipeline.indexing import IndexOptions, index_files, reader_of_bytes
from imta_jax.data.pipeline.pillow_decoding import check_files
from imta_jax.data.pipeline.stored_index import Indexed
from imta_jax.data.source_validation import SourceSplit
from imta_jax.data.sources.request import SourceRequest
from imta_jax.data.sources.storage import UNKNOWN_STATE, FileState, file_states, is_remote
from imta_jax.errors import InputError

_log = logging.getLogger(__name__)
_MAX_NAMED_IMAGES = 10


def index_image_files(
    files: Sequence[str],
    labels: Sequence[int],
    class_names: Sequence[str],
    request: SourceRequest,
    split_name: str,
) -> Indexed:
    """Inspects image files, or reads their stored index.

    Args:
      files: absolute paths, or paths in a bucket.
      labels: class of each file, from 0.
      class_names: names of all classes of the source.
      request: `index_dir`, `memory_limit_gb` and `decoder` are used.
      split_name: the split, for messages.
    """
    count, states = len(files), file_states(files)
    without_sizes = EncodedImages(
        files=np.array([os.fsencode(file) for file in files]),
        file_id=np.arange(count, dtype=np.int32),
        offset=np.full(count, WHOLE_FILE, np.int64),
        sizes=np.zeros((count, 2), np.int32),
        is_jpeg=np.zeros(count, bool),
        orientation=np.ones(count, np.uint8),
    )
    unopened = np.array([_refusal_unopened(state) for state in states], np.uint8)
    check_size = np.array([state == UNKNOWN_STATE for state in states])
    # Class names are part of the key: a class that only another split has shifts the labels.
    key = ("folder", list(class_names), list(files), [tuple(state) for state in states])
    decoder = request.decoder
    if decoder == PILLOW:
        check_files(without_sizes)
    options = IndexOptions(request.index_dir, split_name, request.memory_limit_gb, decoder)
    indexed = index_files(
        without_sizes, np.array(labels, np.int32), unopened, check_size, key, options
    )
    known = np.array([(state.mtime_ns, state.size) for state in states], np.int64).reshape(-1, 2)
    images = dataclasses.replace(
        indexed.images, decoder=decoder, states=known if without_sizes.are_local_files else None
    )
    return indexed._replace(images=images)


def _refusal_unopened(state: FileState) -> Refusal:
    """Why a file is rejected without opening it."""
    if not state.regular:
        return Refusal.NOT_A_FILE
    return Refusal.LARGE_FILE if state.size > MAX_FILE_BYTES else Refusal.NONE


def source_split(
    indexed: Indexed, request: SourceRequest, split_name: str, channels: int = 3
) -> SourceSplit:
    """Leaves out rejected images; decodes the others unless they are to stay encoded.

    Args:
      indexed: all images of the split.
      request: `encoded`, `max_undecodable` and `exif_orientation` are used.
      split_name: the split, for messages.
      channels: channels of arrays, 3 (RGB) or 1 (luminance).

    Raises:
      ValueError: no image, too many images that are rejected, or images of different sizes that are
        to become an array.
    """
    is_accepted = indexed.refusal == Refusal.NONE
    rejected, accepted = np.flatnonzero(~is_accepted), np.flatnonzero(is_accepted)
    named = tuple(_with_reason(indexed, i) for i in rejected[:_MAX_NAMED_IMAGES].tolist())
    if len(rejected):
        _report_rejected(indexed, len(rejected), named, request.max_undecodable, split_name)
    if len(accepted) == 0:
        raise InputError(f"{split_name} has 0 images, expected at least 1")
    images, labels = indexed.images[accepted], indexed.labels[accepted]
    reasons = collections.Counter(
        Refusal(code).reason for code in indexed.refusal[rejected].tolist()
    )
    rotated = collections.Counter(images.orientation[images.orientation != 1].tolist())
    findings = SplitFindings(dict(reasons.most_common()), named, dict(sorted(rotated.items())))
    images = _oriented(images, request.exif_orientation, rotated.total(), split_name)
    if not request.encoded:
        _check_one_size(images, split_name)
    pixels: np.ndarray | EncodedImages = images
    files = None if request.encoded else images
    if not request.encoded:
        apply_exif = request.exif_orientation == "apply"
        pixels = decode_all(images) if channels == 3 else _decode_luminance(images, apply_exif)
    return SourceSplit(pixels, labels, len(rejected), indexed.digest[accepted], findings, files)


def _decode_luminance(images: EncodedImages, apply_exif: bool) -> UInt8[np.ndarray, "N H W 1"]:
    """Decodes images of one size as inference does: decoders convert colors differently."""
    read = reader_of_bytes(images)
    decoded = [decode_image(read(i), channels=1, apply_exif=apply_exif) for i in range(len(images))]
    return np.stack(decoded)


def _oriented(images: EncodedImages, policy: str, rotated: int, split_name: str) -> EncodedImages:
    """The images with the orientation that the decoders apply."""
    if policy == "apply":
        sizes = displayed_sizes(images.sizes, images.orientation)
        return dataclasses.replace(images, sizes=sizes)
    if rotated:
        _log.warning(
            "%d of %d images of %s have an EXIF orientation, which is ignored; to apply it, set"
            " config.data.exif_orientation=apply",
            rotated,
            len(images),
            split_name,
        )
    return dataclasses.replace(images, orientation=np.ones_like(images.orientation))


def _report_rejected(
    indexed: Indexed, count: int, named: tuple[str, ...], limit: float, split_name: str
) -> None:
    """Raises a ValueError if more than a fraction `limit` of the images is rejected, else warns."""
    total = len(indexed.refusal)
    more = f" and {count - len(named)} more" if count > len(named) else ""
    summary = f"{count} of {total} images of {split_name} cannot be used: {', '.join(named)}{more}"
    stored = f"; the index of these images is {indexed.path}" if indexed.path else ""
    if count > limit * total:
        raise InputError(
            f"{summary}; config.data.max_undecodable is {limit:g}: replace or remove these images,"
            f" or raise it{stored}"
        )
    _log.warning("%s; they are left out%s", summary, stored)


def _with_reason(indexed: Indexed, index: int) -> str:
    """The name of a rejected image with the reason."""
    path, refusal = indexed.images.path(index), Refusal(indexed.refusal[index])
    reason = refusal.reason
    is_file = indexed.images.offset[index] == WHOLE_FILE
    if refusal == Refusal.UNREADABLE and is_file and _is_forbidden(path):
        reason = "cannot be read: permission denied"
    if refusal == Refusal.NOT_A_FILE and not is_remote(os.fsdecode(path)):
        reason = _instead_of_a_file(path)
    return f"{indexed.images.name(index)} ({reason})"


def _is_forbidden(path: bytes) -> bool:
    """Whether a local file exists and may not be read, or is in a folder that may not be opened."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK)


def _instead_of_a_file(path: bytes) -> str:
    """What a local path is that is no regular file."""
    if os.path.isdir(path):
        return "a folder, not a file"
    if os.path.exists(path):
        return "a pipe, a device or a socket, not a file"
    if os.path.islink(path):
        return f"a link to {os.fsdecode(os.readlink(path))!r}, which does not exist"
    return "does not exist"


def _check_one_size(images: EncodedImages, split_name: str) -> None:
    differing = np.flatnonzero((images.sizes != images.sizes[0]).any(axis=1))
    if len(differing):
        i, sizes = differing[0], images.sizes.tolist()
        raise InputError(
            f"{split_name}: {images.name(i)} has {sizes[i]} pixels (height, width), but"
            f" {images.name(0)} has {sizes[0]}; set config.data.preprocessing=random_area_crop (see"
            " configs/imagenet.py), which resizes images to config.data.image_size"
        )
