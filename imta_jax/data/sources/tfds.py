"""Datasets of TensorFlow Datasets by name, downloaded and prepared where need be.

Nothing here is imported from TensorFlow until a dataset is asked for.
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
from imta_jax.data.sources.storage import absolute, opening
from imta_jax.data.sources.tfds_builder import feature_keys, read_builder
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.errors import unknown_name

_log = logging.getLogger(__name__)

# Named in the error for an unknown dataset; every other TFDS name is accepted as well.
USUAL_NAMES = ("cifar10", "cifar100", "fashion_mnist", "imagenet2012")

# Looked for before TFDS starts: from one of the two alone it would prepare half of ImageNet.
_ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}


def accepts(source: str) -> bool:
    """Every name; `read` refuses those that TFDS does not know."""
    return True


def read(request: SourceRequest) -> SourceData:
    """Reads a TFDS dataset, "name", "name/config" or "name/config:1.0.0"; see `load_source`."""
    tfds = import_tfds(request.source)
    _check_name(tfds, request.source)
    data_dir = absolute(request.data_dir) if request.data_dir else None
    with opening(data_dir or request.source):
        try:
            builder = tfds.builder(request.source, data_dir=data_dir)
        except AssertionError as error:  # how TFDS refuses a version
            raise ValueError(str(error)) from error
        feature_keys(builder)  # refuses what is no image classification before it is fetched
        if request.download:
            _prepare(tfds, builder, request)
        return read_builder(builder, request, lambda why: _not_there(builder, request, why))


def describe(source: str) -> tuple[str, int, tuple[int, ...]]:
    """Name, number of classes and image shape of a dataset, from its description alone.

    Raises:
      ValueError: an unknown name, or no images with one class label each.
      ModuleNotFoundError: TFDS or TensorFlow is not installed.
    """
    tfds = import_tfds(source)
    _check_name(tfds, source)
    builder = tfds.builder(source)
    image, label = feature_keys(builder)
    features = builder.info.features
    return builder.name, features[label].num_classes, features[image].shape


def import_tfds(source: str) -> Any:
    """TensorFlow Datasets.

    Raises:
      ModuleNotFoundError: it or TensorFlow is not installed; names `source`, which needs it.
    """
    try:
        import_tensorflow()
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ModuleNotFoundError(
            f"dataset {source!r} would be read by TensorFlow Datasets, which cannot be imported"
            f" ({error.__cause__ or error}): pip install tensorflow-cpu tensorflow-datasets, or"
            f" choose a source that needs neither: {', '.join(embedded.NAMES)}, or a path ending in"
            " .npz"
        ) from error
    return tfds


def warn_if_name_is_ambiguous(source: str) -> None:
    """Warns that a folder is read where TFDS has a dataset of the same name."""
    if _is_known(import_tfds(source), source):
        _log.warning(
            "config.data.source %r is read as the folder %s, though TFDS has a dataset of that"
            " name: for the dataset start elsewhere; for the folder write ./%s",
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
        raise ValueError(
            f"{error}; or another name TFDS knows, the path of a folder (one that is there, or"
            " starting with / or ./), as of pictures or of a version that TFDS prepared"
            " (DATA_DIR/NAME/1.0.0), or a path ending in .npz"
        )


def _prepare(tfds: Any, builder: Any, request: SourceRequest) -> None:
    if import_tensorflow().io.gfile.exists(str(builder.data_dir)):
        return
    _check_archives(builder, request)
    _log.info(
        "dataset %s is not in %s yet: fetching it (TFDS tries for some minutes before it gives up"
        " without a network)",
        request.source,
        builder.data_dir,
    )
    settings = tfds.download.DownloadConfig(
        manual_dir=absolute(request.manual_dir) if request.manual_dir else None,
        # Never there, so that a host without a network need not wait for it.
        try_download_gcs=not builder.MANUAL_DOWNLOAD_INSTRUCTIONS,
    )
    try:
        builder.download_and_prepare(download_config=settings)
    except AssertionError as error:  # how TFDS says that archives are missing
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise ValueError(f"dataset {request.source!r}: {error}") from error
        reason = " ".join(str(error).split())[:300]
        raise _not_there(builder, request, f"preparing it failed ({reason})") from error
    except tarfile.TarError as error:
        folder = _manual_dir(builder, request)
        reason = f"an archive is damaged or cut short ({error}), perhaps of those in {folder}"
        raise _not_there(builder, request, f"{reason}: fetch it again") from error
    except (OSError, import_tensorflow().errors.OpError, RuntimeError) as error:
        if _is_disk_full(error):
            raise OSError(errno.ENOSPC, _disk_full(builder, error)) from error
        if not isinstance(error, OSError):
            raise
        raise _not_there(builder, request, f"fetching it failed ({error})") from error


def _is_disk_full(error: Exception) -> bool:
    """As Python and TensorFlow meet it (TFDS makes a RuntimeError of that), or TFDS foresees it."""
    told = ("Not enough disk space", os.strerror(errno.ENOSPC))
    return getattr(error, "errno", 0) == errno.ENOSPC or any(text in str(error) for text in told)


def _manual_dir(builder: Any, request: SourceRequest) -> str:
    given = request.manual_dir
    return absolute(given) if given else f"{builder.data_dir_root}/downloads/manual"


def _check_archives(builder: Any, request: SourceRequest) -> None:
    folder, exists = _manual_dir(builder, request), import_tensorflow().io.gfile.exists
    wanted = _ARCHIVES.get(builder.name, ())
    missing = [name for name in wanted if not exists(f"{folder}/{name}")]
    if missing:
        raise _not_there(builder, request, f"no {' and no '.join(missing)} in {folder}")


def _by_hand(builder: Any, request: SourceRequest, reason: str) -> str:
    told = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    return (
        f"dataset {request.source!r} is not in {builder.data_dir}: {reason}. It is made of archives"
        f" that have to be fetched by hand; put them, as they are, into"
        f" {_manual_dir(builder, request)} (another folder: config.data.manual_dir)"
        f"{'' if request.download else ' and set config.data.download to True'}, or set"
        f" config.data.data_dir to a folder that holds the prepared dataset. What TFDS asks for:"
        f" {told}"
    )


def _disk_full(builder: Any, error: Exception) -> str:
    root = Path(builder.data_dir_root)
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    size, load = builder.info.dataset_size or 0, builder.info.download_size or 0
    need = f"{(int(size) + int(load)) / 1e9:.1f} GB" if size or load else "more"
    return (
        f"the disk of {there} is full: preparing {builder.name} takes {need},"
        f" {free / 1e9:.1f} GB are free ({error}). Free some, or set config.data.data_dir to a"
        f" larger disk; what was left unfinished is in {root / 'downloads'} and"
        f" {root / builder.name}, and may be removed"
    )


def _not_there(builder: Any, request: SourceRequest, reason: str) -> FileNotFoundError:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return FileNotFoundError(_by_hand(builder, request, reason))
    # Not the `tfds build` command: it cannot start unless Apache Beam is installed too.
    folder = f", data_dir={absolute(request.data_dir)!r}" if request.data_dir else ""
    code = f"import tensorflow_datasets as tfds; tfds.builder({request.source!r}{folder})"
    choice = "" if request.download else "\nor set config.data.download to True"
    return FileNotFoundError(
        f"dataset {request.source!r} is not in {builder.data_dir}: {reason}. With a network, fetch"
        f' it by\n  python -c "{code}.download_and_prepare()"{choice}'
    )
