"""The fingerprint of a dataset, by which a resumed run recognizes changed data.

If one image is missing, other images are held out, and images that were trained on would become
validation images. If a class is renamed, the labels of other classes change.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from imta_jax.data.dataset import Dataset
from imta_jax.data.pipeline.decoder import TF_DATA
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.split import Split

# About this many bytes of an array are hashed, from evenly spaced images.
_HASHED_BYTES = 1 << 26
_PATH_COMPONENTS = 3  # split, class and file name; the folder above may be moved
_MAX_NAMED_CLASSES = 5

# Earlier versions had one decoder of image files, which they did not record.
EARLIER_DECODER = TF_DATA

# Fields of `config.data` that affect how images are read, but no batch.
READER_FIELDS = ("index_dir", "memory_limit_gb", "service")
# Paths, which may differ between runs and hosts. The data is compared by its fingerprint.
PATH_FIELDS = ("source", "data_dir", "manual_dir")

Fingerprint = dict[str, Any]


def fingerprint(dataset: Dataset) -> Fingerprint:
    """Computes the fingerprint of a dataset, as a value that JSON can store.

    The digest of a split covers its labels, image sizes and order. For arrays it also covers
    pixels. For encoded images it covers file names, so that a file of the same name and image size
    with other pixels is not noticed.

    Args:
      dataset: any dataset.

    Returns:
      `class_names`, in `splits` the number of `images` and the `digest` of each split, and for
      image files their `decoder`.
    """
    splits = {
        name: {"images": len(split), "digest": _digest(split)}
        for name, split in dataset.splits.items()
    }
    decoder = {"decoder": dataset.decoder} if dataset.decoder else {}
    return {"class_names": list(dataset.class_names), "splits": splits, **decoder}


def fingerprint_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compares two fingerprints.

    Args:
      before: earlier fingerprint.
      now: current fingerprint.

    Returns:
      One line for the classes, for each split and for the decoder that differ; empty if the
      fingerprints are equal.
    """
    lines = _class_differences(before["class_names"], now["class_names"])
    for name, split in now["splits"].items():
        previous = before["splits"][name]
        if previous["images"] != split["images"]:
            lines.append(f"{name}: {previous['images']} images before, {split['images']} now")
        elif previous["digest"] != split["digest"]:
            lines.append(f"{name}: {split['images']} images as before, but images or labels differ")
    previous = before.get("decoder", EARLIER_DECODER)
    if now.get("decoder", previous) != previous:
        lines.append(
            f"image files: decoded by {previous!r} before, by {now['decoder']!r} now; set"
            f" config.data.pipeline={previous}"
        )
    return lines


def _class_differences(before: list[str], now: list[str]) -> list[str]:
    if before == now:
        return []
    removed = [name for name in before if name not in set(now)]
    added = [name for name in now if name not in set(before)]
    changes = {"removed": removed, "added": added} if removed or added else {"reordered": now}
    described = (
        f"{change}: {', '.join(names[:_MAX_NAMED_CLASSES])}"
        f"{' ...' * (len(names) > _MAX_NAMED_CLASSES)}"
        for change, names in changes.items()
        if names
    )
    return [f"classes, {'; '.join(described)}"]


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for values in (split.labels, split.source_index, split.sizes):
        digest.update(np.ascontiguousarray(values).tobytes())
    images = split.images
    if isinstance(images, EncodedImages):
        paths = images.files[images.file_id].tolist()
        names = (b"/".join(path.split(b"/")[-_PATH_COMPONENTS:]) for path in paths)
        digest.update(b"\n".join(names))
        digest.update(np.ascontiguousarray(images.offset).tobytes())
    else:
        digest.update(images[:: max(1, images.nbytes // _HASHED_BYTES)].tobytes())
    return digest.hexdigest()[:32]
