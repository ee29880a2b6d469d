"""The fingerprint covers images, labels, order and classes, and nothing else."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_run

from imta_jax.data import load_dataset
from imta_jax.data.fingerprint import fingerprint, fingerprint_differences
from imta_jax.data.pipeline.encoded import WHOLE_FILE, EncodedImages


@pytest.fixture(scope="module")
def dataset(source):
    return load_dataset(tiny_run.tiny_config(source).data)


def with_train(dataset, **changes):
    train = dataclasses.replace(dataset.splits["train"], **changes)
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


def encoded(paths):
    count = len(paths)
    return EncodedImages(
        files=np.array(paths),
        file_id=np.arange(count, dtype=np.int32),
        offset=np.full(count, WHOLE_FILE, np.int64),
        sizes=np.full((count, 2), 8, np.int32),
        is_jpeg=np.ones(count, bool),
        orientation=np.ones(count, np.uint8),
    )


def test_fingerprint_of_the_same_data_is_equal_after_json(dataset):
    actual = fingerprint(dataset)
    assert fingerprint_differences(json.loads(json.dumps(actual)), fingerprint(dataset)) == []


@pytest.mark.parametrize("field", ["images", "labels", "source_index"])
def test_changed_images_labels_or_order_are_reported_by_split(dataset, field):
    values = getattr(dataset.splits["train"], field)[::-1]
    (line,) = fingerprint_differences(
        fingerprint(dataset), fingerprint(with_train(dataset, **{field: values}))
    )
    assert line.startswith("train: ") and "48 images" in line


def test_changed_counts_and_classes_are_reported(dataset):
    train = dataset.splits["train"]
    fewer = {f: getattr(train, f)[1:] for f in ("images", "labels", "source_index")}
    changed = dataclasses.replace(with_train(dataset, **fewer), class_names=("0", "1", "zz"))
    assert fingerprint_differences(fingerprint(dataset), fingerprint(changed)) == [
        "classes, removed: 2; added: zz",
        f"train: {len(train)} images before, {len(train) - 1} now",
    ]


def test_moved_folder_has_the_same_fingerprint(dataset):
    def fingerprint_of(*paths):
        images = encoded([path.encode() for path in paths])
        fields = {f: getattr(dataset.splits["train"], f)[:2] for f in ("labels", "source_index")}
        return fingerprint(with_train(dataset, images=images, **fields))

    before = fingerprint_of("/a/train/cat/1.jpg", "/a/train/dog/2.jpg")
    moved = fingerprint_of("/b/c/train/cat/1.jpg", "/b/c/train/dog/2.jpg")
    assert not fingerprint_differences(before, moved)
    renamed = fingerprint_of("/a/train/cat/1.jpg", "/a/train/dog/3.jpg")
    assert fingerprint_differences(before, renamed)
