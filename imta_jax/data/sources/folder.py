"""A folder of images, ROOT/SPLIT/CLASS/*.jpg, with the same classes as TFDS's ImageFolder."""

import logging
import os
from collections.abc import Mapping

from imta_jax.data.decoding.header import SUFFIXES
from imta_jax.data.findings import MisplacedImages
from imta_jax.data.pipeline.stored_index import Indexed
from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources.encoded_split import index_image_files, source_split
from imta_jax.data.sources.folder_layout import (
    Listing,
    class_listings,
    ignored_names,
    layout_hint,
    list_folder,
    misplaced_images,
    nested_root,
    prepared_versions,
)
from imta_jax.data.sources.request import SourceRequest, choose_splits, could_be_chosen
from imta_jax.data.sources.storage import absolute, is_path, is_remote, translate_errors
from imta_jax.data.sources.tfds import warn_if_name_is_ambiguous
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import FilePermissionError, InputError, MissingFileError
from imta_jax.runtime.paths import reason_missing

_log = logging.getLogger(__name__)

_LAYOUT = "expected ROOT/SPLIT/CLASS/*.jpg, e.g. ROOT/train/cat/1.jpg and ROOT/test/cat/2.jpg"
_MAX_NAMED_FOLDERS = 5


def accepts(source: str) -> bool:
    """Whether the source is a path. `tfds_directory`, which comes first, takes TFDS datasets."""
    return is_path(source)


def read(request: SourceRequest) -> SourceData:
    """Indexes or decodes the images; see `sources.load_source`."""
    warn_if_name_is_ambiguous(request.source)
    root = absolute(request.source)
    if is_remote(root):
        import_tensorflow(f"config.data.source is {request.source!r}: reading a bucket")
    with translate_errors(root):
        _check_exists(root)
        top = list_folder(root)
        splits = _list_splits(request, top)
        chosen = _choose_splits(request, top, splits)
        # Only the splits that are used define classes.
        listed = {split: class_listings(splits[split]) for split in chosen.values()}
        ignored = [
            ignored_names(classes.values(), top.child(split)) for split, classes in listed.items()
        ]
        _check_classes(listed)
        misplaced = misplaced_images(top, splits, listed)
        _warn_of_misplaced(misplaced)
        names = sorted(set().union(*listed.values()))
        source_splits = {}
        for role, split in chosen.items():
            indexed = _indexed(listed[split], names, request, top.child(split))
            source_splits[role] = source_split(indexed, request, top.child(split))
    name = os.path.basename(root)
    return SourceData(
        name,
        source_splits,
        tuple(names),
        misplaced=misplaced,
        ignored=tuple(names for names in ignored if names.counts),
        decoder=request.decoder,
    )


def _check_exists(root: str) -> None:
    is_folder = import_tensorflow().io.gfile.isdir if is_remote(root) else os.path.isdir
    if not is_folder(root):
        missing = not is_remote(root) and not os.path.exists(root)
        problem = reason_missing(root) if missing else f"no folder {root}"
        raise MissingFileError(f"config.data.source: {problem}; {_LAYOUT}")


def _list_splits(request: SourceRequest, root: Listing) -> dict[str, Listing]:
    """The listings of the folders in the root, without unreadable ones that are not used."""
    splits = {}
    for name in root.folders:
        try:
            splits[name] = list_folder(root.child(name))
        except FilePermissionError as error:
            if could_be_chosen(request, name):
                raise
            _log.warning("ignoring a folder that no split uses: %s", error)
    return splits


def _choose_splits(
    request: SourceRequest, root: Listing, splits: Mapping[str, Listing]
) -> dict[str, str]:
    """Chooses among the folders that have class folders."""
    available = [name for name, split in splits.items() if split.folders]
    if request.train_split not in splits and (versions := prepared_versions(splits)):
        raise InputError(
            f"{root.path} has dataset versions that TFDS prepared; set config.data.source to one of"
            f" them: {_first_few(versions)}"
        )
    if not available:
        hint = layout_hint(root, splits)
        raise InputError(
            f"{root.path} has no class folders with images; {_LAYOUT}, or a folder with the"
            " features.json of a dataset version that TFDS prepared"
            f"{'; ' if hint else ''}{hint}"
        )
    try:
        return choose_splits(request, available, root.path)
    except InputError as error:
        nested = nested_root({name: splits[name] for name in available})
        if not nested:
            raise
        raise InputError(
            f"{error}; {nested} has splits of its own: set config.data.source={nested}"
        ) from error


def _warn_of_misplaced(misplaced: tuple[MisplacedImages, ...]) -> None:
    for images in misplaced:
        _log.warning(
            "ignoring %d images in %s; to read them, %s", images.count, images.folder, images.remedy
        )


def _check_classes(listed: Mapping[str, Mapping[str, Listing]]) -> None:
    """Rejects class folders without images."""
    folders = [listing for classes in listed.values() for listing in classes.values()]
    empty = [listing.path for listing in folders if not listing.images]
    if empty:
        raise InputError(
            f"{len(empty)} class folders have no images ({', '.join(SUFFIXES)}):"
            f" {_first_few(empty)}; add images or remove the folders"
        )


def _first_few(paths: list[str]) -> str:
    more = " ..." if len(paths) > _MAX_NAMED_FOLDERS else ""
    return ", ".join(paths[:_MAX_NAMED_FOLDERS]) + more


def _indexed(
    classes: Mapping[str, Listing], class_names: list[str], request: SourceRequest, split_name: str
) -> Indexed:
    """The index of a split's images."""
    label = {name: k for k, name in enumerate(class_names)}
    files = [listing.child(image) for listing in classes.values() for image in listing.images]
    labels = [label[name] for name, listing in classes.items() for _ in listing.images]
    return index_image_files(files, labels, class_names, request, split_name)
