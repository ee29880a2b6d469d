"""The search for a damaged record in TFRecord files, since TensorFlow's errors do not name it."""

import contextlib
import errno
from collections.abc import Iterator, Sequence

from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import StorageError


@contextlib.contextmanager
def damaged_records_named(shards: Sequence[str]) -> Iterator[None]:
    """Names the first damaged record if reading records fails.

    Args:
      shards: paths of the files that the block reads.

    Raises:
      StorageError: a record is truncated, has another checksum or is not a `tf.train.Example`.
    """
    # TensorFlow quotes the bytes of a record that it cannot parse, which need not be UTF-8.
    errors = import_tensorflow().errors
    try:
        yield
    except (errors.DataLossError, errors.InvalidArgumentError, UnicodeDecodeError) as error:
        if damage := _first_damage(shards):
            raise StorageError(
                errno.EIO, f"{damage}; copy the file again, or prepare the dataset again"
            ) from error
        raise


def _first_damage(shards: Sequence[str]) -> str:
    """The first file with a damaged record, with a reason; "" if there is none."""
    from google.protobuf.message import DecodeError

    tf = import_tensorflow()
    for shard in shards:
        count = 0
        try:
            for record in tf.data.TFRecordDataset(shard).as_numpy_iterator():
                tf.train.Example.FromString(record)
                count += 1
        except tf.errors.DataLossError:
            return f"{shard} is truncated or damaged after {count} records"
        except DecodeError:
            return f"{shard}: record {count} is not a tf.train.Example"
    return ""
