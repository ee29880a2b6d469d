"""Custom data sources: a registered name, an entry point or a dotted path.

    @imta_jax.register_source("my_data")
    def make(options):
        images, labels = ...
        return imta_jax.data.ImageSource({"train": (images, labels), "test": ...})

`config.data.source` is "my_data" or "my_package.data:make", and `options` is
`config.data.source_options`.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imta_jax.data.source_validation import (
    SourceData,
    SourceSplit,
    numbered_classes,
    validate_split,
)
from imta_jax.data.sources.encoded_split import index_image_files, source_split
from imta_jax.data.sources.request import SourceRequest, choose_splits
from imta_jax.data.sources.storage import absolute, is_remote, translate_errors
from imta_jax.errors import InputError, MissingFileError
from imta_jax.runtime.factories import call_factory
from imta_jax.runtime.paths import reason_missing
from imta_jax.runtime.registry import SOURCES, dotted_path_of

# The images and labels of a split.
Examples = tuple[np.ndarray | Sequence[str | os.PathLike[str]], np.ndarray | Sequence[int]]


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The return value of the factory of a data source.

    Attributes:
      splits: (images, labels) by the name of the split. Images are an array, uint8 [N, H, W, C] or
        [N, H, W] with C = 1 or 3, or N paths of JPEG or PNG files. Labels are integers [N], from 0.
        `config.data.train_split`, `validation_split` and `test_split` choose among the names.
      class_names: one name per class, in label order; None for "0", "1", ...
      name: name of the dataset, for reports; "" for `config.data.source`.
    """

    splits: Mapping[str, Examples]
    class_names: Sequence[str] | None = None
    name: str = ""


def accepts(source: str) -> bool:
    """Whether the source is a registered name, an entry point or a dotted path."""
    return SOURCES.accepts(source)


def read(request: SourceRequest) -> SourceData:
    """Calls the factory, and indexes or decodes its files; see `sources.load_source`."""
    field = f"config.data.source {request.source!r}"
    factory = SOURCES.get(request.source, "config.data.source")
    source_name = f"{field} ({dotted_path_of(factory)})"
    returned = call_factory(factory, request.source_options, field, "config.data.source_options")
    source = _checked(returned, source_name)
    chosen = choose_splits(request, source.splits, source_name)
    names = None if source.class_names is None else tuple(source.class_names)
    train_labels = _labels(
        source.splits[chosen["train"]][1], f"{source_name} split {chosen['train']!r}"
    )
    splits = {
        role: _split(
            source.splits[name], names, train_labels, request, f"{source_name} split {name!r}"
        )
        for role, name in chosen.items()
    }
    # Only files have digests.
    has_files = any(split.digests is not None for split in splits.values())
    decoder = request.decoder if has_files else ""
    return SourceData(source.name or request.source, splits, names, decoder=decoder)


def _checked(returned: Any, source_name: str) -> ImageSource:
    """The source, if it is of the documented form.

    Raises:
      InputError: names the first part that is not.
    """
    if not isinstance(returned, ImageSource):
        raise InputError(
            f"{source_name} must return an imta_jax.data.ImageSource; found {_kind(returned)}"
        )
    if not isinstance(returned.splits, Mapping) or not returned.splits:
        raise InputError(
            f'{source_name}: splits must be a mapping like {{"train": (images, labels), ...}};'
            f" found {_kind(returned.splits)}"
        )
    for name, examples in returned.splits.items():
        if not isinstance(name, str) or not isinstance(examples, tuple | list):
            raise InputError(
                f"{source_name}: splits must map names to (images, labels); found {name!r}: "
                f"{_kind(examples)}"
            )
        if len(examples) != 2:
            raise InputError(
                f"{source_name}: split {name!r} must be (images, labels); found {len(examples)}"
                " entries"
            )
    if not isinstance(returned.name, str):
        raise InputError(f"{source_name}: name must be a string; found {returned.name!r}")
    _check_class_names(returned.class_names, source_name)
    return returned


def _check_class_names(names: Any, source_name: str) -> None:
    if names is None:
        return
    one_per_class = isinstance(names, Sequence | np.ndarray) and not isinstance(names, str)
    if not one_per_class or getattr(names, "ndim", 1) == 0 or len(names) == 0:
        raise InputError(
            f"{source_name}: class_names must be one name per class; found {names!r:.80}"
        )
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{source_name}: class_names must be strings that are not empty; found {name!r}"
            )
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{source_name}: class_names must differ; found {count} named {name!r}")


def _split(
    examples: Examples,
    class_names: tuple[str, ...] | None,
    train_labels: np.ndarray,
    request: SourceRequest,
    split_name: str,
) -> SourceSplit:
    images, labels = examples[0], _labels(examples[1], split_name)
    if isinstance(images, np.ndarray):
        if images.dtype == np.object_ or images.dtype.kind in "US":
            images = images.tolist()
        else:
            return SourceSplit(images, labels)
    files = _files(images, split_name)
    # Labels are checked here, because rejected files are left out before the usual checks.
    pixels = np.zeros((len(files), 1, 1, 1), np.uint8)
    validate_split(split_name, pixels, labels)
    try:
        names = class_names or numbered_classes(train_labels)
    except InputError as error:
        raise InputError(f"{split_name}: {error}") from error
    validate_split(split_name, pixels, labels, len(names))
    with translate_errors(split_name):
        indexed = index_image_files(files, labels.tolist(), names, request, split_name)
        return source_split(indexed, request, split_name)


def _labels(labels: Any, split_name: str) -> np.ndarray:
    """The labels as an array; `validate_split` checks its type and shape."""
    try:
        return np.asarray(labels)
    except ValueError as error:  # from lists of different lengths
        raise InputError(
            f"{split_name}: labels must be integers [N], one class per image ({error})"
        ) from error


def _files(images: Any, split_name: str) -> list[str]:
    """Absolute paths; the first one must exist, which detects another working directory."""
    if isinstance(images, str | bytes | memoryview) or not isinstance(images, Sequence):
        raise InputError(
            f"{split_name}: images must be a uint8 array or a list of paths; found {_kind(images)}"
        )
    files = []
    for i, path in enumerate(images):
        file_name = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(file_name, str) or not _is_file_name(file_name):
            description = ascii(file_name) if isinstance(file_name, str) else _kind(path)
            raise InputError(f"{split_name}: image {i} must be a path; found {description}")
        files.append(absolute(file_name))
    if files and not is_remote(files[0]) and not os.path.exists(files[0]):
        raise MissingFileError(
            f"{split_name}: {reason_missing(files[0])}; paths must be absolute or start in"
            f" {os.getcwd()}"
        )
    return files


def _is_file_name(path: str) -> bool:
    """Whether a file system can hold it: no zero byte, no surrogate that stands for no byte."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _kind(value: Any) -> str:
    shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
