"""The tf.data execution: reads and decodes on all cores, ahead of the step.

Everything random is settled before (`augmentation.py`); each element is a pure function of its
rows. An image's window is cut out while its JPEG is decoded, so that only the needed part is. That
is TensorFlow's graph, without Python, so that a tf.data service can run it on other machines; what
comes out becomes batches in `assembly.py`.
"""

import contextlib
import math
import socket
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from imta_jax.data.pipeline.batch_indices import PADDING_INDEX, BatchIndices
from imta_jax.data.pipeline.collate import (
    DecodeGroups,
    collate_batches,
    decode_order,
    group_for_decoding,
    prefetch,
)
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.tf_decoding import (
    decode_whole_image,
    find_damaged,
    make_decoder,
    max_group_bytes,
    plan_decoding,
    reader,
    without_autograph,
)
from imta_jax.data.tensorflow_import import import_tensorflow, short_message
from imta_jax.runtime.environment import usable_cores

if TYPE_CHECKING:
    import tensorflow as tf

T = TypeVar("T")

_DECODED_AT_ONCE = 1024
_MOST_BATCHES_AHEAD = 16
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class HostPipeline:
    """How tf.data works, whatever it works on.

    Attributes:
      memory_limit_gb: what its buffers may take, in 10^9 bytes.
      service: address of a tf.data service's dispatcher, "grpc://host:port"; "" for this host.
    """

    memory_limit_gb: float = 4.0
    service: str = ""

    def __post_init__(self) -> None:
        if not self.memory_limit_gb > 0:
            raise ValueError(
                f"config.data.memory_limit_gb is {self.memory_limit_gb}, expected above 0"
            )
        if self.service and "://" not in self.service:
            raise ValueError(
                f"config.data.service is {self.service!r}, expected e.g. grpc://host:5000"
            )

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> "HostPipeline":
        """Reads `config.data`."""
        return cls(settings["memory_limit_gb"], settings["service"])

    def batches_ahead(self, bytes_per_batch: int) -> int:
        """How many finished batches may wait, at least 1."""
        # Besides those that wait: two that are being filled, what they are made of, the step's own.
        ahead = self.memory_limit_gb * 1e9 / 2 // bytes_per_batch - 5
        return int(np.clip(ahead, 1, _MOST_BATCHES_AHEAD))

    def groups_at_once(self, max_group_bytes: int) -> int:
        """How many groups of images are decoded at the same time, at least 1."""
        # What is being resized takes memory too, and batches have the other half of the bound.
        return int(np.clip(self.memory_limit_gb * 1e9 / 4 // max_group_bytes, 1, usable_cores()))


def array_batches(
    images: np.ndarray, rows: BatchIndices, batch_size: int, host: HostPipeline
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of the images' own size out of an array; yields images and index of each batch."""
    tf = import_tensorflow()
    if host.service:
        raise ValueError(
            "config.data.service is for images that are read and decoded; these are in memory"
            " already: leave it empty"
        )
    with tf.device("CPU"):
        stored = tf.constant(images)

    def read(index: "tf.Tensor", window: "tf.Tensor", flip: "tf.Tensor") -> tuple[Any, ...]:
        # A padding row reads image 0 and loses it again: tf.gather refuses -1.
        cut = _crop(tf.gather(stored, tf.maximum(index, 0)), window, flip)
        padding = (index == PADDING_INDEX)[:, None, None, None]
        return tf.where(padding, tf.zeros_like(cut), cut), index

    dataset = tf.data.Dataset.from_tensor_slices(tuple(rows)).batch(batch_size)
    dataset = dataset.map(without_autograph(read), num_parallel_calls=usable_cores())
    ahead = host.batches_ahead(images[0].nbytes * batch_size)
    return _as_numpy(dataset.prefetch(ahead))


def resized_batches(
    images: np.ndarray | EncodedImages,
    rows: BatchIndices,
    batch_size: int,
    host: HostPipeline,
    *,
    size: int,
    exact: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of any size, each brought to `size` pixels a side; yields images and index.

    Args:
      images: encoded, or an array.
      rows: the examples and their windows.
      batch_size: rows per batch.
      host: how tf.data works.
      size: pixels per side of what comes out.
      exact: an antialiased triangle filter at fractions of pixels, as Pillow's bilinear resize has
        it (evaluation); otherwise plain bilinear interpolation of whole windows, several times as
        fast (training).
    """
    tf = import_tensorflow()
    decoding = plan_decoding(images, rows, size, exact)
    every = group_for_decoding(rows.index, decoding.kind, batch_size)

    def run(groups: DecodeGroups) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
        """Places and pictures, group after group."""
        decode = make_decoder(images, groups.kind, groups.places.shape[1], size, exact)
        asked = (np.arange(len(groups.places)), *(values[groups.places] for values in decoding[:3]))
        at_once = host.groups_at_once(max_group_bytes(images, decoding, groups))
        dataset = tf.data.Dataset.from_tensor_slices(asked).map(
            without_autograph(lambda number, *rows: (number, *decode(*rows))),
            num_parallel_calls=at_once,
        )
        if host.service:
            made = _from_service(dataset, len(groups.places), host)
        else:
            # None that wait: the sooner one is resized, the more of it is in the cache still.
            made = _naming_damage(_as_numpy(dataset), images, decoding.index[groups.places])
        for number, *found in made:
            places = groups.places[number]
            ends = decoding.margin[places], decoding.margin[places] + decoding.width[places]
            yield places, [p[:, a:b] for p, a, b in zip(found, *ends, strict=True)]

    running = [run(groups) for groups in every]
    found = (next(running[turn]) for turn in decode_order(every, batch_size))
    channels = 3 if isinstance(images, EncodedImages) else images.shape[-1]
    shape = (batch_size, size, size, channels)
    return prefetch(collate_batches(found, rows, shape), host.batches_ahead(math.prod(shape)))


def _naming_damage(
    made: Iterator[T], images: np.ndarray | EncodedImages, index: np.ndarray
) -> Iterator[T]:
    """The same elements; an OSError instead of one tells which images are damaged.

    Args:
      made: groups in their order.
      images: that they are made of.
      index: int64 [K, G], which of them; a line per group.
    """
    done = 0
    try:
        for element in made:
            yield element
            done += 1
    except OSError as error:
        encoded = isinstance(images, EncodedImages) and done < len(index)
        names = find_damaged(images, index[done]) if encoded else []
        raise OSError("\n  ".join([str(error), *names])) from error


def decode_all(images: EncodedImages) -> np.ndarray:
    """Decodes images of one size whole, uint8 [N, H, W, 3], in their order."""
    tf = import_tensorflow()
    contents_of = reader(images)
    height, width = images.sizes[0].tolist()

    def decode(i: "tf.Tensor") -> "tf.Tensor":
        image = decode_whole_image(contents_of(i[None])[0])
        return tf.ensure_shape(image, [height, width, 3])

    dataset = tf.data.Dataset.range(len(images))
    dataset = dataset.map(without_autograph(decode), num_parallel_calls=tf.data.AUTOTUNE)
    whole, start = np.empty((len(images), height, width, 3), np.uint8), 0
    with _reading():
        for chunk in dataset.batch(_DECODED_AT_ONCE).as_numpy_iterator():
            whole[start : start + len(chunk)] = chunk
            start += len(chunk)
    return whole


def _crop(images: "tf.Tensor", window: "tf.Tensor", flip: "tf.Tensor") -> "tf.Tensor":
    """`augmentation.crop` in TensorFlow's operations, for images [B, H, W, C]."""
    tf = import_tensorflow()
    _, height, width, _ = images.shape
    corner = tf.cast(window[:, :2], tf.int32)
    reach = tf.reduce_max(tf.abs(corner))
    padded = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]])
    rows = reach + corner[:, :1] + tf.range(height)
    columns = reach + corner[:, 1:] + tf.range(width)
    columns = tf.where(flip[:, None], columns[:, ::-1], columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _as_numpy(dataset: "tf.data.Dataset") -> Iterator[tuple[np.ndarray, ...]]:
    """Runs a dataset on this host."""
    tf = import_tensorflow()
    options = tf.data.Options()
    options.deterministic = True
    # It would lower what is set here: groups of images took one core of two.
    options.autotune.enabled = False
    with _reading():
        yield from _elements(dataset.with_options(options))


def _elements(dataset: "tf.data.Dataset") -> Iterator[tuple[np.ndarray, ...]]:
    """As `as_numpy_iterator`, for tuples of tensors, in a fraction of its time.

    Which is half a millisecond for the pictures of a group, a twentieth of decoding them.
    """
    tf = import_tensorflow()
    spec = dataset.element_spec
    kinds = {"output_types": [s.dtype for s in spec], "output_shapes": [s.shape for s in spec]}
    iterator = tf.raw_ops.AnonymousIteratorV3(**kinds)
    variant = tf.data.experimental.to_variant(dataset)
    tf.raw_ops.MakeIterator(dataset=variant, iterator=iterator)
    while True:
        try:
            found = tf.raw_ops.IteratorGetNext(iterator=iterator, **kinds)
        except tf.errors.OutOfRangeError:
            return
        yield tuple(map(np.asarray, found))


def _from_service(
    dataset: "tf.data.Dataset", elements: int, host: HostPipeline
) -> Iterator[tuple[np.ndarray, ...]]:
    """Runs a dataset on other machines: its elements in any order, each once."""
    _check_reachable(host.service)
    service = import_tensorflow().data.experimental.service
    shared = dataset.apply(
        service.distribute(processing_mode=service.ShardingPolicy.DYNAMIC, service=host.service)
    )
    found = 0
    with _reading(f"the tf.data service {host.service}"):
        for element in _elements(shared):
            found += 1
            yield element
    if found < elements:
        raise OSError(
            f"the tf.data service {host.service} lost {elements - found} of {elements} groups of"
            " images: a worker went away? Start it again, then the same command"
        )


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody listens; TensorFlow would try for ever."""
    place = urllib.parse.urlsplit(address)
    try:
        socket.create_connection((place.hostname, place.port or 0), _CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no tf.data service at config.data.service={address} ({error}); start its dispatcher"
            " and workers first, or leave the field empty to decode on this host"
        ) from error


@contextlib.contextmanager
def _reading(what: str = "reading images") -> Iterator[None]:
    tf = import_tensorflow()
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(
            f"{what} failed: {short_message(error)}\nWas an image changed,"
            " moved or removed after the run began? Bring it back and start the same command again:"
            " a run does not go on with other data"
        ) from error
