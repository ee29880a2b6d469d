"""The layout of an image folder, ROOT/SPLIT/CLASS/*.jpg, and images that lie elsewhere.

Hidden files and folders, whose names start with a dot, are ignored.
"""

import collections
import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imta_jax.data.decoding.header import SUFFIXES
from imta_jax.data.findings import IgnoredNames, MisplacedImages
from imta_jax.data.sources.storage import is_remote
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import FilePermissionError, InputError, StorageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The names in a folder, without hidden ones.

    Attributes:
      path: the folder.
      folders: names of the folders in it.
      files: names of the files.
    """

    path: str
    folders: list[str]
    files: list[str]

    def child(self, name: str) -> str:
        """The path of a name in the folder."""
        return f"{self.path.rstrip('/')}/{name}"

    @property
    def images(self) -> list[str]:
        """Sorted names of the image files."""
        return sorted(filter(is_image, self.files))


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def list_folder(path: str, *, many_images: bool = False) -> Listing:
    """Lists a folder and checks which names are folders.

    Args:
      path: the folder, local or in a bucket.
      many_images: whether to take names with the suffix of an image for files, without a check.

    Raises:
      InputError: the name of a folder is not UTF-8. Names of folders are names of classes.
      OSError: the folder cannot be read.
    """
    unchecked = many_images or is_remote(path)
    is_folder = import_tensorflow().io.gfile.isdir if is_remote(path) else os.path.isdir
    names = [name for name in _names(path) if not name.startswith(".")]
    # Bucket listings mark folders by a slash; one request per name would take minutes.
    folders = [
        name
        for name in names
        if name.endswith("/")
        or (not (unchecked and is_image(name)) and is_folder(f"{path}/{name}"))
    ]
    known = set(folders)
    _check_utf8(path, folders)
    files = [name for name in names if name not in known]
    return Listing(path, sorted(name.rstrip("/") for name in folders), files)


def _names(path: str) -> list[str]:
    """The names in a folder. Names of local files that are not UTF-8 have surrogates."""
    if is_remote(path):
        return import_tensorflow().io.gfile.listdir(path)
    forbidden = f"cannot read {path}: permission denied; run chmod u+rx on this folder"
    if os.path.isdir(path) and not os.access(path, os.X_OK):  # it can be listed at most
        raise FilePermissionError(errno.EACCES, forbidden)
    try:
        return os.listdir(path)
    except PermissionError as error:
        raise FilePermissionError(error.errno, forbidden) from error
    except OSError as error:
        raise StorageError(error.errno, f"cannot read {path}: {error.strerror}") from error


def _check_utf8(path: str, names: Iterable[str]) -> None:
    for name in names:
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(
                f"{path} contains a folder whose name is not UTF-8: {os.fsencode(name)!r}; rename"
                " this folder"
            )


def class_listings(split: Listing) -> dict[str, Listing]:
    """The listings of the class folders of a split."""
    paths = {name: split.child(name) for name in split.folders}
    return {name: list_folder(path, many_images=True) for name, path in paths.items()}


def ignored_names(classes: Iterable[Listing], folder: str) -> IgnoredNames:
    """Finds and logs the names in class folders that do not have the suffix of an image."""
    others = [
        f"{name}{'/' if name in listing.folders else ''}"
        for listing in classes
        for name in [*listing.folders, *listing.files]
        if not is_image(name)
    ]
    counts = dict(collections.Counter(map(_kind, others)).most_common())
    if counts:
        _log.warning(
            "ignoring %d files or folders in the class folders of %s (%s); only %s are read",
            len(others),
            folder,
            ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            ", ".join(SUFFIXES),
        )
    return IgnoredNames(folder, counts)


def misplaced_images(
    root: Listing,
    splits: Mapping[str, Listing],
    chosen: Mapping[str, Mapping[str, Listing]],
) -> tuple[MisplacedImages, ...]:
    """Finds images at other levels of the folder than ROOT/SPLIT/CLASS.

    Args:
      root: the folder.
      splits: its folders, by name.
      chosen: the class folders of the splits that are used.
    """
    misplaced = [_loose(root.path, root, "move them to ROOT/SPLIT/CLASS")]
    for name, split in splits.items():
        flat = not split.folders and name not in chosen
        remedy = f"{name} has no class folders: move them to" if flat else "move them to"
        misplaced.append(_loose(split.path, split, f"{remedy} {split.path}/CLASS"))
    for name, classes in chosen.items():
        count = sum(_count_below(listing) for listing in classes.values())
        folder = f"{splits[name].path}/CLASS/FOLDER"
        misplaced.append(MisplacedImages(folder, count, f"move them to {splits[name].path}/CLASS"))
    misplaced += [_unused(split, name) for name, split in splits.items() if name not in chosen]
    return tuple(images for images in misplaced if images.count)


def layout_hint(root: Listing, splits: Mapping[str, Listing]) -> str:
    """Advice for a folder without usable splits; "" if nothing is known."""
    parent, _, name = root.path.rpartition("/")
    loose = sum(len(split.images) for split in splits.values())
    if loose:
        return (
            f"found {loose} images in {root.path}/FOLDER; if these folders are the classes, set"
            f" config.data.source={parent or '/'} config.data.train_split={name}"
            " config.data.validation_split=hold_out config.data.test_split=hold_out and"
            " config.data.test_examples to a number of images"
        )
    if root.images:
        return f"found {len(root.images)} images in {root.path} itself, without class folders"
    return ""


def prepared_versions(splits: Mapping[str, Listing]) -> list[str]:
    """The folders of TFDS datasets, which have a features.json, in the root or one level deeper."""
    listings = list(splits.values())
    for split in splits.values():
        for name in split.folders:
            with contextlib.suppress(FilePermissionError, StorageError):  # other folders may do
                listings.append(list_folder(split.child(name), many_images=True))
    return sorted(listing.path for listing in listings if "features.json" in listing.files)


def nested_root(splits: Mapping[str, Listing]) -> str:
    """A folder below the root that has class folders with images in its folders; "" if none."""
    for split in splits.values():
        for name in split.folders:
            with contextlib.suppress(FilePermissionError, StorageError):  # other folders may do
                if _is_split(list_folder(split.child(name))):
                    return split.path
    return ""


def _is_split(folder: Listing) -> bool:
    """Whether a folder has no images itself, but its first folder has."""
    first = folder.folders[:1]
    return not folder.images and any(list_folder(folder.child(name)).images for name in first)


def _loose(folder: str, listing: Listing, remedy: str) -> MisplacedImages:
    return MisplacedImages(folder, len(listing.images), remedy)


def _unused(split: Listing, name: str) -> MisplacedImages:
    """The images in the folders of a split that is not used. In a bucket, they are not counted."""
    remedy = (
        f"set config.data.train_split, validation_split or test_split to {name}, or move them to"
        " ROOT/SPLIT/CLASS"
    )
    count = 0 if is_remote(split.path) else _count_below(split)
    return MisplacedImages(f"{split.path}/FOLDER", count, remedy)


def _count_below(listing: Listing) -> int:
    """Number of images in the folders below a class folder. Links in them are not followed."""
    walk = import_tensorflow().io.gfile.walk if is_remote(listing.path) else os.walk
    return sum(
        is_image(name) and not name.startswith(".")
        for folder in listing.folders
        for _, _, files in walk(listing.child(folder))
        for name in files
    )


def _kind(name: str) -> str:
    if name.endswith("/"):
        return "folder"
    _, dot, extension = name.rpartition(".")
    return f".{ascii(extension.lower())[1:-1]}" if dot else "no extension"
