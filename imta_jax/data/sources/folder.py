"""A folder of images, ROOT/SPLIT/CLASS/*.jpg, with the same classes as TFDS's ImageFolder."""

import collections
import contextlib
import logging
import os
from collections.abc import Iterator

import numpy as np

from imta_jax.data.pipeline.encoded import WHOLE_FILE, EncodedImages
from imta_jax.data.pipeline.indexing import Indexed, index_files
from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources.encoded_split import source_split
from imta_jax.data.sources.request import SourceRequest, choose_splits
from imta_jax.data.sources.storage import absolute, file_state, is_path, translate_errors
from imta_jax.data.sources.tfds import warn_if_name_is_ambiguous
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import InputError, MissingFileError

_log = logging.getLogger(__name__)

_EXTENSIONS = (".jpg", ".jpeg", ".png")  # those of ImageFolder
_LAYOUT = "expected ROOT/SPLIT/CLASS/*.jpg, e.g. ROOT/train/cat/1.jpg and ROOT/test/cat/2.jpg"
_MAX_NAMED_FOLDERS = 5


def accepts(source: str) -> bool:
    """Whether it is a path; `tfds_directory` comes first and takes prepared TFDS datasets."""
    return is_path(source)


def read(request: SourceRequest) -> SourceData:
    """Indexes or decodes the images; see `sources.load_source`."""
    warn_if_name_is_ambiguous(request.source)
    root = absolute(request.source)
    with translate_errors(root), _naming_invalid_utf8(root):
        _check_exists(root)
        classes = _class_folders(root)
        # Classes of all splits count, including splits that are not used.
        names = sorted(set().union(*classes.values()))
        if not names:
            raise InputError(
                f"{root} has no class folders with images; {_LAYOUT}, or a folder with the"
                " features.json of a dataset version that TFDS prepared"
            )
        chosen = choose_splits(request, classes, root)
        images = {split: _image_names(root, split, classes[split]) for split in chosen.values()}
        _check_classes(images)
        splits = {}
        for role, split in chosen.items():
            where = f"{root}/{split}"
            indexed = _indexed(images[split], names, request.index_dir, where)
            splits[role] = source_split(indexed, request, where)
    return SourceData(os.path.basename(root), splits, tuple(names))


def _check_exists(root: str) -> None:
    tf = import_tensorflow()
    if not tf.io.gfile.isdir(root):
        raise MissingFileError(f"no folder {root}; {_LAYOUT}")


@contextlib.contextmanager
def _naming_invalid_utf8(root: str) -> Iterator[None]:
    """Names the folder with a file name that TensorFlow cannot read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{root} contains a name that is not UTF-8: {error.object!r}; rename this file or"
            " folder"
        ) from error


def _class_folders(root: str) -> dict[str, list[str]]:
    """Names of the class folders of each split; hidden folders such as .git are not splits."""
    splits = [split for split in _folders(root) if not split.startswith(".")]
    return {split: found for split in splits if (found := _folders(root, split))}


def _folders(*parts: str) -> list[str]:
    tf, path = import_tensorflow(), "/".join(parts)
    listed = tf.io.gfile.listdir(path)
    # Bucket listings mark folders by a slash; one request per name would take minutes.
    found = (name for name in listed if name.endswith("/") or tf.io.gfile.isdir(f"{path}/{name}"))
    return sorted(name.rstrip("/") for name in found)


def _image_names(root: str, split: str, classes: list[str]) -> dict[str, list[str]]:
    """Names of the images by the path of their class folder."""
    paths = [f"{root}/{split}/{name}" for name in classes]
    listed = {path: import_tensorflow().io.gfile.listdir(path) for path in paths}
    _warn_of_other_files([name for names in listed.values() for name in names], f"{root}/{split}")
    return {path: sorted(filter(_is_image, names)) for path, names in listed.items()}


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS)


def _warn_of_other_files(names: list[str], where: str) -> None:
    """Warns of names in class folders that are not images; hidden ones are ignored."""
    others = [name for name in names if not _is_image(name) and not name.startswith(".")]
    if others:
        extensions = (os.path.splitext(name)[1].lower() or "no extension" for name in others)
        counts = collections.Counter(extensions).most_common()
        _log.warning(
            "ignoring %d files or folders in the class folders of %s (%s); only %s are read",
            len(others),
            where,
            ", ".join(f"{count} {extension}" for extension, count in counts),
            ", ".join(_EXTENSIONS),
        )


def _check_classes(images: dict[str, dict[str, list[str]]]) -> None:
    """Rejects class folders that are hidden, which ImageFolder would accept, or without images."""
    folders = {path: found for split in images.values() for path, found in split.items()}
    hidden = [path for path in folders if path.rpartition("/")[2].startswith(".")]
    if hidden:
        raise InputError(
            f"a hidden folder would become a class: {_first_few(hidden)}; remove it, or rename it"
            " if it is a class"
        )
    empty = [path for path, found in folders.items() if not found]
    if empty:
        raise InputError(
            f"{len(empty)} class folders have no images ({', '.join(_EXTENSIONS)}):"
            f" {_first_few(empty)}; add images or remove the folders"
        )


def _first_few(paths: list[str]) -> str:
    more = " ..." if len(paths) > _MAX_NAMED_FOLDERS else ""
    return ", ".join(paths[:_MAX_NAMED_FOLDERS]) + more


def _indexed(
    images: dict[str, list[str]], class_names: list[str], index_dir: str, where: str
) -> Indexed:
    """The index of a split's images, given by the path of their class folder."""
    label = {name: k for k, name in enumerate(class_names)}
    files = [f"{path}/{name}" for path, found in images.items() for name in found]
    labels = [label[path.rpartition("/")[2]] for path, found in images.items() for _ in found]
    count = len(files)
    without_sizes = EncodedImages(
        files=np.array([os.fsencode(file) for file in files]),
        file_id=np.arange(count, dtype=np.int32),
        offset=np.full(count, WHOLE_FILE, np.int64),
        sizes=np.zeros((count, 2), np.int32),
        is_jpeg=np.zeros(count, bool),
    )
    # Class names are part of the key: a class that only another split has shifts the labels.
    key = ("folder", class_names, files, [file_state(file) for file in files])
    return index_files(without_sizes, np.array(labels, np.int32), key, index_dir, where)
