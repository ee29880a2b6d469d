"""The tf.data pipeline: reads and decodes images on all cores.

Decoding is a TensorFlow graph without Python, so that a tf.data service can run it on other
machines.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from jaxtyping import Int

from imta_jax.data.decoding.exif import apply_orientation
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.changed_images import changed_images_error, check_unchanged
from imta_jax.data.pipeline.collate import (
    DecodeGroups,
    decode_order,
    group_for_decoding,
)
from imta_jax.data.pipeline.decode_plan import DecodePlan, max_group_bytes
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.tf_decoding import (
    decode_whole_image,
    find_changed,
    make_decoder,
    reader,
    without_autograph,
)
from imta_jax.data.pipeline.tf_execution import from_service, on_this_host, reading_errors
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import StorageError

if TYPE_CHECKING:
    import tensorflow as tf

T = TypeVar("T")

_DECODED_PER_CHUNK = 1024
_CHUNK_BYTES = 64_000_000
# After an error of a service, this many groups that are missing are read again on this host.
_RUNNING_GROUPS = 256
_NAMED_IMAGES = 8


class Options(Protocol):
    """The options of `HostPipeline` that decoding uses."""

    @property
    def service(self) -> str:
        """Address of a tf.data service, or ""."""
        ...

    def parallel_groups(self, group_bytes: int) -> int:
        """Number of groups of images to decode in parallel, at least 1."""
        ...


def decoded_groups(
    images: np.ndarray | EncodedImages,
    plan: DecodePlan,
    indices: BatchIndices,
    batch_size: int,
    host: Options,
    *,
    size: int,
    exact: bool,
) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Decodes the images of `indices`; yields positions and images, as `collate_batches` takes.

    The arguments are those of `host_pipeline.resized_batches`, and `plan` is of `plan_decoding`.
    """
    groups = group_for_decoding(indices.index, plan.kind, batch_size)
    running = [_decoded(images, plan, kind_groups, host, size, exact) for kind_groups in groups]
    return (next(running[turn]) for turn in decode_order(groups, batch_size))


def _decoded(
    images: np.ndarray | EncodedImages,
    plan: DecodePlan,
    groups: DecodeGroups,
    host: Options,
    size: int,
    exact: bool,
) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Decodes groups of one kind; yields positions [G] and decoded images, group after group."""
    tf = import_tensorflow()
    decode = make_decoder(images, groups.kind, groups.positions.shape[1], size, exact)
    number = np.arange(len(groups.positions))
    inputs = (number, *(values[groups.positions] for values in (plan.index, plan.window, plan.cut)))
    dataset = tf.data.Dataset.from_tensor_slices(inputs).map(
        without_autograph(lambda number, *rest: (number, *decode(*rest))),
        num_parallel_calls=host.parallel_groups(max_group_bytes(images, plan, groups)),
    )
    index = plan.index[groups.positions]
    if host.service:
        in_any_order = from_service(dataset, len(groups.positions), host.service)
        elements = _naming_changed(in_any_order, images, index, number_of=_number)
    else:
        # No buffer of decoded images: those that are resized at once are still in the cache.
        elements = _naming_changed(on_this_host(dataset), images, index)
    for number, *pixels in elements:
        positions = groups.positions[number]
        if isinstance(images, EncodedImages):
            check_unchanged(images, plan.index[positions])
        first = plan.margin[positions]
        columns = zip(pixels, first, first + plan.width[positions], strict=True)
        cut = (image[:, start:end] for image, start, end in columns)
        oriented = zip(cut, plan.orientation[positions].tolist(), strict=True)
        yield positions, [_oriented(image, orientation) for image, orientation in oriented]


def _number(element: tuple[np.ndarray, ...]) -> int:
    return int(element[0])


def _oriented(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return image
    return np.ascontiguousarray(apply_orientation(image, orientation))


def _naming_changed(
    elements: Iterator[T],
    images: np.ndarray | EncodedImages,
    index: Int[np.ndarray, "K G"],
    number_of: Callable[[T], int] | None = None,
) -> Iterator[T]:
    """Yields the same elements; turns an OSError into one that names the images.

    Args:
      elements: decoded groups.
      images: the images they are decoded from.
      index: examples of each group.
      number_of: the number of the group of an element; None if they are in order.
    """
    missing = np.ones(len(index), bool)
    try:
        for i, element in enumerate(elements):
            yield element
            missing[i if number_of is None else number_of(element)] = False
    except OSError as error:
        of_tensorflow = isinstance(error.__cause__, import_tensorflow().errors.OpError)
        if not of_tensorflow or not isinstance(images, EncodedImages) or not missing.any():
            raise
        # A service decodes other groups at the same time.
        first = 1 if number_of is None else _RUNNING_GROUPS
        members = index[missing][:first].reshape(-1)
        if changes := find_changed(images, members):
            raise changed_images_error(changes) from error
        names = ", ".join(images.name(i) for i in members[:_NAMED_IMAGES])
        more = " and others" if len(members) > _NAMED_IMAGES else ""
        raise StorageError(f"{error}\n  while reading {names}{more}") from error


def decode_all(images: EncodedImages) -> np.ndarray:
    """Decodes images of one size completely and in order, uint8 [N, H, W, 3].

    `host_pipeline.decode_all` checks their size before.
    """
    tf = import_tensorflow()
    contents_of = reader(images)
    height, width = images.sizes[0].tolist()
    sizes = tf.constant(images.stored_sizes)

    def decode(i: "tf.Tensor") -> "tf.Tensor":
        image = decode_whole_image(contents_of(i[None])[0])
        with tf.control_dependencies([tf.assert_equal(tf.shape(image)[:2], sizes[i])]):
            return tf.ensure_shape(image, [None, None, 3])

    dataset = tf.data.Dataset.range(len(images))
    dataset = dataset.map(without_autograph(decode), num_parallel_calls=tf.data.AUTOTUNE)
    decoded, start = np.empty((len(images), height, width, 3), np.uint8), 0
    # Stored images differ in size if only some of them are transposed.
    same_size = bool((images.stored_sizes == images.sizes).all())
    per_chunk = int(np.clip(_CHUNK_BYTES // decoded[0].nbytes, 1, _DECODED_PER_CHUNK))
    per_chunk = per_chunk if same_size else 1
    starts = np.arange(0, len(images), per_chunk)[:, None]
    groups = np.minimum(starts + np.arange(per_chunk), len(images) - 1)
    for chunk in _naming_changed(_chunks(dataset.batch(per_chunk)), images, groups):
        for i, image in enumerate(chunk, start):
            decoded[i] = apply_orientation(image, images.orientation[i])
        start += len(chunk)
    check_unchanged(images, np.arange(len(images)))
    return decoded


def _chunks(dataset: "tf.data.Dataset") -> Iterator[np.ndarray]:
    with reading_errors():
        yield from dataset.as_numpy_iterator()
