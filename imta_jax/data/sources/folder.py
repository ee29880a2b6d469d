"""A folder of pictures, root/split/class/*.jpg, as TFDS's ImageFolder has it."""

import os
from typing import Any

import numpy as np

from imta_jax.data.encoded import WHOLE_FILE, EncodedImages
from imta_jax.data.indexing import Indexed, index_files
from imta_jax.data.raw import RawData
from imta_jax.data.sources.raw_split import as_raw_split
from imta_jax.data.sources.request import SourceRequest, choose_splits
from imta_jax.data.sources.storage import absolute, is_path, is_remote, opening
from imta_jax.data.sources.tfds import import_tfds
from imta_jax.data.tensorflow_import import import_tensorflow

# What ImageFolder takes for a picture.
_ENDINGS = (".jpg", ".jpeg", ".png")
_LAYOUT = "expected ROOT/SPLIT/CLASS/*.jpg, e.g. ROOT/train/cat/1.jpg and ROOT/test/cat/2.jpg"


def accepts(source: str) -> bool:
    """Whether it is a path; `prepared.accepts` takes those of TFDS before."""
    return is_path(source)


def read(request: SourceRequest) -> RawData:
    """See `sources.load_source`."""
    tfds = import_tfds(request.source)
    root = absolute(request.source)
    with opening(root):
        _check_there(root)
        builder = tfds.folder_dataset.ImageFolder(root)
        names = tuple(builder.info.features["label"].names)
        if not names:
            raise ValueError(f"{root} holds no pictures in folders of classes; {_LAYOUT}")
        parts = choose_splits(request, builder.info.splits, root)
        _check_classes(builder, root, names, parts.values())
        splits = {
            part: as_raw_split(_indexed(root, split, names, request), request, f"{root}/{split}")
            for part, split in parts.items()
        }
    return RawData(os.path.basename(root), splits, names)


def _check_there(root: str) -> None:
    tf = import_tensorflow()
    if not tf.io.gfile.isdir(root):
        raise FileNotFoundError(f"no folder {root}; {_LAYOUT}")


def _check_classes(builder: Any, root: str, names: tuple[str, ...], splits: Any) -> None:
    """Refuses folders of classes without any picture: a class that nothing could be learned of."""
    empty = [
        f"{root}/{split}/{name}"
        for split in splits
        for name in _folders(f"{root}/{split}")
        if name in names and not _pictures(f"{root}/{split}/{name}")
    ]
    if empty:
        raise ValueError(
            f"{len(empty)} class folders hold no picture ({', '.join(_ENDINGS)}): "
            f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}; fill or remove them"
        )


def _indexed(root: str, split: str, names: tuple[str, ...], request: SourceRequest) -> Indexed:
    files, labels = [], []
    for name in _folders(f"{root}/{split}"):
        found = _pictures(f"{root}/{split}/{name}")
        files += [f"{root}/{split}/{name}/{picture}" for picture in found]
        labels += [names.index(name)] * len(found)
    count = len(files)
    unknown = EncodedImages(
        files=np.array([os.fsencode(file) for file in files]),
        file_id=np.arange(count, dtype=np.int32),
        offset=np.full(count, WHOLE_FILE, np.int64),
        sizes=np.zeros((count, 2), np.int32),
        is_jpeg=np.zeros(count, bool),
    )
    key = ("folder", files, [_changed(file) for file in files])
    return index_files(
        unknown, np.array(labels, np.int32), key, request.index_dir, f"{root}/{split}"
    )


def _folders(path: str) -> list[str]:
    tf = import_tensorflow()
    listed = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]  # of a bucket with a slash
    return sorted(name for name in listed if tf.io.gfile.isdir(f"{path}/{name}"))


def _pictures(path: str) -> list[str]:
    listed = import_tensorflow().io.gfile.listdir(path)
    return sorted(name for name in listed if name.lower().endswith(_ENDINGS))


def _changed(path: str) -> int:
    """When a file last changed, ns; 0 in a bucket, where asking for each would take hours."""
    return 0 if is_remote(path) else os.stat(path).st_mtime_ns
