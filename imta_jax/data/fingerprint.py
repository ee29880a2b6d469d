"""Which images a dataset is made of, in a few numbers: a run goes on with those it began with.

One image less redraws what is held out, so that images which were trained on would then judge; a
renamed class moves the labels of others.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from imta_jax.data.dataset import Dataset, Split
from imta_jax.data.pipeline.encoded import EncodedImages

# Of an array's pixels about so many bytes are looked at, of images spread evenly.
_BYTES = 1 << 26
_NAME_PARTS = 3  # split, class, file: the folder they lie in may move
_NAMED_AT_MOST = 5

Fingerprint = dict[str, Any]


def fingerprint(dataset: Dataset) -> Fingerprint:
    """What a run's folder keeps of its data, as JSON holds it.

    Args:
      dataset: any.

    Returns:
      `class_names`, and under `splits` of each its number of `images` and a `digest` of labels,
      sizes and order, and of names (encoded images: other pixels of the same size in a file of the
      same name are not noticed) or of pixels (arrays).
    """
    splits = {
        name: {"images": len(split), "digest": _digest(split)}
        for name, split in dataset.splits.items()
    }
    return {"class_names": list(dataset.class_names), "splits": splits}


def fingerprint_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each part in which two identities differ; none if they are the same."""
    lines = _class_differences(before["class_names"], now["class_names"])
    for name, split in now["splits"].items():
        then = before["splits"][name]
        if then["images"] != split["images"]:
            lines.append(f"{name}: {then['images']} images then, {split['images']} now")
        elif then["digest"] != split["digest"]:
            lines.append(f"{name}: {split['images']} images as then, but others, or other labels")
    return lines


def _class_differences(then: list[str], now: list[str]) -> list[str]:
    if then == now:
        return []
    gone, new = ([c for c in a if c not in set(b)] for a, b in ((then, now), (now, then)))
    changes = {"gone": gone, "new": new} if gone or new else {"in another order": now}
    told = (
        f"{what}: {', '.join(names[:_NAMED_AT_MOST])}{' ...' * (len(names) > _NAMED_AT_MOST)}"
        for what, names in changes.items()
        if names
    )
    return [f"classes, {'; '.join(told)}"]


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for values in (split.labels, split.source_index, split.sizes):
        digest.update(np.ascontiguousarray(values).tobytes())
    images = split.images
    if isinstance(images, EncodedImages):
        names = images.files[images.file_id].tolist()
        digest.update(b"\n".join(b"/".join(n.split(b"/")[-_NAME_PARTS:]) for n in names))
        digest.update(np.ascontiguousarray(images.offset).tobytes())
    else:
        digest.update(images[:: max(1, images.nbytes // _BYTES)].tobytes())
    return digest.hexdigest()[:32]
