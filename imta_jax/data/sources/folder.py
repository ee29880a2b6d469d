"""A folder of pictures, root/split/class/*.jpg, with the classes that TFDS's ImageFolder finds."""

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
from imta_jax.data.sources.storage import absolute, changed, is_path, opening
from imta_jax.data.sources.tfds import warn_if_name_is_ambiguous
from imta_jax.data.tensorflow_import import import_tensorflow

_log = logging.getLogger(__name__)

# What ImageFolder takes for a picture.
_ENDINGS = (".jpg", ".jpeg", ".png")
_LAYOUT = "expected ROOT/SPLIT/CLASS/*.jpg, e.g. ROOT/train/cat/1.jpg and ROOT/test/cat/2.jpg"


def accepts(source: str) -> bool:
    """Whether it is a path; `tfds_directory.accepts` takes those of TFDS before."""
    return is_path(source)


def read(request: SourceRequest) -> SourceData:
    """See `sources.load_source`."""
    warn_if_name_is_ambiguous(request.source)
    root = absolute(request.source)
    with opening(root), _naming(root):
        _check_there(root)
        # The classes of all splits count, also of those that play no part here; .git is none.
        shown = [split for split in _folders(root) if not split.startswith(".")]
        classes = {split: found for split in shown if (found := _folders(root, split))}
        names = sorted(set().union(*classes.values()))
        if not names:
            raise ValueError(
                f"{root} holds no pictures in folders of classes; {_LAYOUT}; or the folder with the"
                " features.json of a version that TFDS prepared"
            )
        parts = choose_splits(request, classes, root)
        pictures = {split: _pictures(root, split, classes[split]) for split in parts.values()}
        _check_classes(pictures)
        splits = {}
        for part, split in parts.items():
            where = f"{root}/{split}"
            splits[part] = source_split(
                _indexed(pictures[split], names, request.index_dir, where), request, where
            )
    return SourceData(os.path.basename(root), splits, tuple(names))


def _check_there(root: str) -> None:
    tf = import_tensorflow()
    if not tf.io.gfile.isdir(root):
        raise FileNotFoundError(f"no folder {root}; {_LAYOUT}")


@contextlib.contextmanager
def _naming(root: str) -> Iterator[None]:
    """Says where a name was found that TensorFlow cannot read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a name in {root} is not UTF-8 ({error.object!r}): give the file or folder another"
        ) from error


def _check_classes(pictures: dict[str, dict[str, list[str]]]) -> None:
    """Refuses folders of classes without any picture, and hidden ones, which ImageFolder takes."""
    folders = {path: found for split in pictures.values() for path, found in split.items()}
    hidden = [path for path in folders if path.rpartition("/")[2].startswith(".")]
    if hidden:
        raise ValueError(
            f"a hidden folder would become a class: {', '.join(hidden[:5])}; remove it, or call it"
            " otherwise if it is one"
        )
    empty = [path for path, found in folders.items() if not found]
    if empty:
        raise ValueError(
            f"{len(empty)} class folders hold no picture ({', '.join(_ENDINGS)}): "
            f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}; fill or remove them"
        )


def _indexed(
    pictures: dict[str, list[str]], names: list[str], index_dir: str, where: str
) -> Indexed:
    """All pictures of a split, by the paths of its folders of classes."""
    label = {name: k for k, name in enumerate(names)}
    files = [f"{path}/{picture}" for path, found in pictures.items() for picture in found]
    labels = [label[path.rpartition("/")[2]] for path, found in pictures.items() for _ in found]
    count = len(files)
    unknown = EncodedImages(
        files=np.array([os.fsencode(file) for file in files]),
        file_id=np.arange(count, dtype=np.int32),
        offset=np.full(count, WHOLE_FILE, np.int64),
        sizes=np.zeros((count, 2), np.int32),
        is_jpeg=np.zeros(count, bool),
    )
    # The names as well: a class that only another split has moves the labels of this one.
    key = ("folder", names, files, [changed(file) for file in files])
    return index_files(unknown, np.array(labels, np.int32), key, index_dir, where)


def _folders(*path: str) -> list[str]:
    tf, path = import_tensorflow(), "/".join(path)
    listed = tf.io.gfile.listdir(path)
    # A bucket tells its folders by a slash: asking it for each would take minutes.
    found = (name for name in listed if name.endswith("/") or tf.io.gfile.isdir(f"{path}/{name}"))
    return sorted(name.rstrip("/") for name in found)


def _pictures(root: str, split: str, classes: list[str]) -> dict[str, list[str]]:
    """Names of the pictures by the path of their class's folder."""
    paths = [f"{root}/{split}/{name}" for name in classes]
    listed = {path: import_tensorflow().io.gfile.listdir(path) for path in paths}
    _tell_of_others([name for names in listed.values() for name in names], f"{root}/{split}")
    return {path: sorted(filter(_is_picture, names)) for path, names in listed.items()}


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _tell_of_others(names: list[str], where: str) -> None:
    """Warns of what lies in folders of classes and is not read; hidden files are nobody's."""
    others = [name for name in names if not _is_picture(name) and not name.startswith(".")]
    if others:
        endings = (os.path.splitext(name)[1].lower() or "no ending" for name in others)
        counts = collections.Counter(endings).most_common()
        _log.warning(
            "%d files or folders in the class folders of %s are passed over (%s): only %s are read",
            len(others),
            where,
            ", ".join(f"{count} {ending}" for ending, count in counts),
            ", ".join(_ENDINGS),
        )
