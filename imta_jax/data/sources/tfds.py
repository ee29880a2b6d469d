"""Datasets of TensorFlow Datasets by name, downloaded and prepared if necessary.

TensorFlow is imported only when a dataset is read.
"""

import errno
import logging
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources import embedded
from imta_jax.data.sources.request import SourceRequest
from imta_jax.data.sources.storage import absolute, is_remote, translate_errors
from imta_jax.data.sources.tfds_builder import (
    check_one_shape,
    described_by_tfds,
    feature_keys,
    read_builder,
)
from imta_jax.data.tensorflow_import import has_tensorflow, import_tensorflow
from imta_jax.errors import (
    FilePermissionError,
    InputError,
    MissingFileError,
    MissingPackageError,
    StorageError,
    message_of,
    unknown_name,
)
from imta_jax.runtime.optional_packages import install_command, is_installed
from imta_jax.runtime.paths import local_path
from imta_jax.runtime.registry import colon_hint

_log = logging.getLogger(__name__)
_PACKAGE = "tensorflow_datasets"

# Listed in the error for an unknown dataset; all other TFDS names are valid, too.
USUAL_NAMES = ("cifar10", "cifar100", "fashion_mnist", "imagenet2012")

# Checked before TFDS starts, which would prepare half of ImageNet from one archive alone.
_ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}


def accepts(source: str) -> bool:
    """Every name; `read` rejects names that TFDS does not know."""
    return True


def read(request: SourceRequest) -> SourceData:
    """Reads a TFDS dataset, "name", "name/config" or "name/config:1.0.0"; see `load_source`."""
    tfds = import_tfds(request.source)
    _check_name(tfds, request.source)
    data_dir = _folder("data_dir", request.data_dir)
    with translate_errors(data_dir or request.source):
        try:
            problem = f"config.data.source is {request.source!r}, which TFDS cannot describe"
            with described_by_tfds(problem, "correct the name, or prepare damaged files again"):
                builder = tfds.builder(request.source, data_dir=data_dir)
        except AssertionError as error:  # TFDS's error for an unknown version
            raise InputError(str(error)) from error
        feature_keys(builder)  # rejects other than image classification before the download
        if request.download:
            _prepare(tfds, builder, request)
        return read_builder(
            builder, request, lambda reason: _not_prepared(builder, request, reason)
        )


def describe(source: str, *, one_shape: bool) -> tuple[str, int, tuple[int, ...]]:
    """Name, number of classes and image shape of a dataset, without reading it.

    Args:
      source: name of the dataset.
      one_shape: whether all images must have one shape; otherwise, unknown sizes are None.

    Raises:
      ValueError: an unknown name, no images with one class label each, or different shapes.
      ModuleNotFoundError: TFDS or TensorFlow is not installed.
    """
    tfds = import_tfds(source)
    _check_name(tfds, source)
    builder = tfds.builder(source)
    image, label = feature_keys(builder)
    if one_shape:
        check_one_shape(builder, image)
    features = builder.info.features
    return builder.name, features[label].num_classes, features[image].shape


def import_tfds(source: str) -> Any:
    """Imports TensorFlow Datasets.

    Args:
      source: the dataset that needs it, for messages.

    Raises:
      ModuleNotFoundError: TFDS or TensorFlow is not installed.
    """
    try:
        import_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise MissingPackageError(
            f"config.data.source is {source!r}, which requires TensorFlow Datasets, but it cannot"
            f" be imported ({error.__cause__ or error}): {install_command('tfds')}, or choose a"
            f" source that does not need it: {', '.join(embedded.NAMES)}, a path ending in .npz, or"
            " a folder of images"
        ) from error
    return tfds


def warn_if_name_is_ambiguous(source: str) -> None:
    """Warns if a local folder has the name of a TFDS dataset.

    Without TFDS there is no dataset of that name, and a path such as ./cifar10 is not a
    dataset name.
    """
    if not re.match(r"\w", source) or not has_tensorflow() or not is_installed(_PACKAGE):
        return
    if _is_known(import_tfds(source), source):
        _log.warning(
            "config.data.source %r is both the folder %s and a TFDS dataset; reading the folder."
            " Write ./%s to confirm, or start from another folder to read the dataset",
            source,
            absolute(source),
            source,
        )


def _is_known(tfds: Any, source: str) -> bool:
    name = re.split("[/:]", source, maxsplit=1)[0]  # without configuration and version
    return name in tfds.list_builders(with_community_datasets=False)


def _check_name(tfds: Any, source: str) -> None:
    if not _is_known(tfds, source):
        error = unknown_name("dataset", source, [*embedded.NAMES, *USUAL_NAMES])
        raise InputError(
            f"{error}; also valid: any other TFDS name, a path ending in .npz, and the path of an"
            " existing folder (or one that starts with / or ./) with images or with a dataset"
            " version that TFDS prepared (DATA_DIR/NAME/1.0.0), or a source of your own,"
            f' "package.module:name"{colon_hint(source)}'
        )


def _prepare(tfds: Any, builder: Any, request: SourceRequest) -> None:
    """Downloads and prepares a dataset unless it exists."""
    if import_tensorflow().io.gfile.exists(str(builder.data_dir)):
        return
    _check_archives(builder, request)
    _log.info(
        "dataset %s is not in %s: downloading it (without a network, TFDS retries for some"
        " minutes before it fails)",
        request.source,
        builder.data_dir,
    )
    download_config = tfds.download.DownloadConfig(
        manual_dir=_folder("manual_dir", request.manual_dir),
        # Google's bucket has no manually downloaded datasets; trying would delay offline hosts.
        try_download_gcs=not builder.MANUAL_DOWNLOAD_INSTRUCTIONS,
    )
    try:
        builder.download_and_prepare(download_config=download_config)
    except AssertionError as error:  # TFDS's error for missing archives
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise InputError(f"dataset {request.source!r}: {error}") from error
        reason = " ".join(str(error).split())[:300]
        raise _not_prepared(builder, request, f"preparing it failed ({reason})") from error
    except tarfile.TarError as error:
        folder = _manual_dir(builder, request)
        reason = f"an archive is damaged or truncated ({error}), probably one in {folder}"
        raise _not_prepared(builder, request, f"{reason}; download it again") from error
    except (OSError, import_tensorflow().errors.OpError, RuntimeError) as error:
        if _is_disk_full(error):
            raise StorageError(errno.ENOSPC, _disk_full(builder, error)) from error
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.EACCES, errno.EROFS):
            raise FilePermissionError(
                error.errno,
                f"dataset {request.source!r} cannot be prepared: {message_of(error)}; set"
                " config.data.data_dir to a folder that can be written",
            ) from error
        raise _not_prepared(builder, request, f"downloading it failed ({error})") from error


def _is_disk_full(error: Exception) -> bool:
    """Recognizes the errors of Python, TensorFlow (in a RuntimeError of TFDS) and TFDS itself."""
    texts = ("Not enough disk space", os.strerror(errno.ENOSPC))
    return getattr(error, "errno", 0) == errno.ENOSPC or any(text in str(error) for text in texts)


def _manual_dir(builder: Any, request: SourceRequest) -> str:
    folder = _folder("manual_dir", request.manual_dir)
    return folder or f"{builder.data_dir_root}/downloads/manual"


def _folder(field: str, path: str) -> str | None:
    """The absolute path of a local folder, or the address of a bucket; None for ""."""
    if not path or is_remote(path):
        return path.rstrip("/") or None
    return str(local_path(f"config.data.{field}", path))


def _check_archives(builder: Any, request: SourceRequest) -> None:
    folder, exists = _manual_dir(builder, request), import_tensorflow().io.gfile.exists
    required = _ARCHIVES.get(builder.name, ())
    missing = [name for name in required if not exists(f"{folder}/{name}")]
    if missing:
        raise _not_prepared(builder, request, f"no {' and no '.join(missing)} in {folder}")


def _disk_full(builder: Any, error: Exception) -> str:
    root = Path(builder.data_dir_root)
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    size, download = builder.info.dataset_size or 0, builder.info.download_size or 0
    needed = f"{(int(size) + int(download)) / 1e9:.1f} GB" if size or download else "more space"
    return (
        f"the disk of {existing} is full: preparing {builder.name} needs {needed},"
        f" {free / 1e9:.1f} GB are free ({error}). Free some space, or set config.data.data_dir to"
        f" a larger disk. Incomplete files in {root / 'downloads'} and {root / builder.name} can be"
        " removed"
    )


def _not_prepared(builder: Any, request: SourceRequest, reason: str) -> MissingFileError:
    """The error for a dataset that is not in `data_dir`, with the way to get it."""
    reason += _other_versions(builder)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return MissingFileError(_manual_download(builder, request, reason))
    # The `tfds build` command would require Apache Beam.
    folder = f", data_dir={absolute(request.data_dir)!r}" if request.data_dir else ""
    code = f"import tensorflow_datasets as tfds; tfds.builder({request.source!r}{folder})"
    choice = "" if request.download else "\nor set config.data.download to True"
    return MissingFileError(
        f"dataset {request.source!r} is not in {builder.data_dir}: {reason}. On a host with a"
        f' network, run\n  python -c "{code}.download_and_prepare()"{choice}'
    )


def _other_versions(builder: Any) -> str:
    """The versions that are prepared, with the way to read one; "" if there are none."""
    tf, (folder, _, wanted) = import_tensorflow(), str(builder.data_dir).rpartition("/")
    if not tf.io.gfile.isdir(folder):
        return ""
    names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    versions = [name for name in names if re.fullmatch(r"\d+\.\d+\.\d+", name) and name != wanted]
    if not versions:
        return ""
    return (
        f"; {folder} has version {', '.join(versions)} instead of {wanted}: to read one, set"
        f" config.data.source={folder}/{versions[-1]}"
    )


def _manual_download(builder: Any, request: SourceRequest, reason: str) -> str:
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    download = "" if request.download else " and set config.data.download to True"
    return (
        f"dataset {request.source!r} is not in {builder.data_dir}: {reason}. Its archives must be"
        f" downloaded manually. Put them, without unpacking, into {_manual_dir(builder, request)}"
        f" (or another config.data.manual_dir){download}, or set config.data.data_dir to a folder"
        f" with the prepared dataset. Instructions of TFDS: {instructions}"
    )
