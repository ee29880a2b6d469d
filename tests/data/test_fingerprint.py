"""A dataset is known again by its images, labels and classes, and by nothing else."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_run

from imta_jax.data import load_dataset
from imta_jax.data.fingerprint import fingerprint, fingerprint_differences
from imta_jax.data.pipeline.encoded import WHOLE_FILE, EncodedImages


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    source = tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "thirds.npz")
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
    )


def test_the_same_data_do_not_differ_also_not_through_json(dataset):
    found = fingerprint(dataset)
    assert fingerprint_differences(json.loads(json.dumps(found)), fingerprint(dataset)) == []


@pytest.mark.parametrize("field", ["images", "labels", "source_index"])
def test_another_image_label_or_order_is_told_by_split(dataset, field):
    values = getattr(dataset.splits["train"], field)[::-1]
    (line,) = fingerprint_differences(
        fingerprint(dataset), fingerprint(with_train(dataset, **{field: values}))
    )
    assert line.startswith("train: ")
    assert "others" in line


def test_numbers_and_classes_are_told(dataset):
    train = dataset.splits["train"]
    fewer = {f: getattr(train, f)[1:] for f in ("images", "labels", "source_index")}
    changed = dataclasses.replace(with_train(dataset, **fewer), class_names=("0", "1", "zz"))
    assert fingerprint_differences(fingerprint(dataset), fingerprint(changed)) == [
        "classes, gone: 2; new: zz",
        f"train: {len(train)} images then, {len(train) - 1} now",
    ]


def test_files_are_known_by_name_wherever_their_folder_lies(dataset):
    def known(*paths):
        images = encoded([path.encode() for path in paths])
        some = {f: getattr(dataset.splits["train"], f)[:2] for f in ("labels", "source_index")}
        return fingerprint(with_train(dataset, images=images, **some))

    here = known("/a/train/cat/1.jpg", "/a/train/dog/2.jpg")
    assert (
        fingerprint_differences(here, known("/b/c/train/cat/1.jpg", "/b/c/train/dog/2.jpg")) == []
    )
    assert fingerprint_differences(here, known("/a/train/cat/1.jpg", "/a/train/dog/3.jpg")) != []
