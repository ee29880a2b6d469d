"""Encoded images in TFDS records: indexed once, then read in any order."""

import io
import json
import shutil
import tempfile

import numpy as np
import pytest
import tfds_datasets
from PIL import Image
from sample_images import config, make_image, pillow_evaluation_crop

from imta_jax.data import (
    RandomAreaCrop,
    Shard,
    Split,
    eval_batches,
    evaluation_images,
    load_dataset,
    train_batches,
)
from imta_jax.data.pipeline import indexing
from imta_jax.data.sources import SourceRequest, load_source
from imta_jax.errors import StorageError

RANDOM_AREA_CROP = {"preprocessing": "random_area_crop", "image_size": 32, "resize": 36}
NAMES = ("dandelion", "daisy", "tulips", "sunflowers", "roses")
SPLITS = {"train": 30, "validation": 10, "test": 10}
SHARDS = 3


def jpeg(image, **options):
    contents = io.BytesIO()
    image.save(contents, "JPEG", **{"quality": 90, **options})
    return contents.getvalue()


def flowers(splits=SPLITS):
    """Examples by split. Every image has a unique height, which identifies it."""
    numbers = iter(range(1000))
    made = {}
    for split, count in splits.items():
        examples = [
            (i, make_image(40 + i, 60 + 7 * i % 50, i))
            for i in (next(numbers) for _ in range(count))
        ]
        made[split] = [{"image": jpeg(image), "label": i % 5} for i, image in examples]
    return made


def prepare(folder, examples, file_format="tfrecord", shape=(None, None, 3)):
    """Writes a version of the TFDS dataset "tf_flowers" and returns its folder."""
    # TFDS stores file objects without decoding them.
    encoded = {
        split: [{**example, "image": io.BytesIO(example["image"])} for example in split_examples]
        for split, split_examples in examples.items()
    }
    return tfds_datasets.prepare(
        folder,
        "TfFlowers",
        encoded,
        shape=shape,
        version="3.0.1",
        shards=SHARDS,
        names=NAMES,
        encoding_format="jpeg",
        file_format=file_format,
    )


def fields(folder, source="tf_flowers", **changes):
    return config(source, data_dir=str(folder), **{**RANDOM_AREA_CROP, **changes})


def read(folder, source="tf_flowers", **changes):
    """The splits of the source, without held-out images and statistics, which is faster."""
    return load_source(SourceRequest.from_config(fields(folder, source, **changes), encoded=True))


def contents(split):
    images = split.images
    file_positions = (images.files[images.file_id].tolist(), images.offset.tolist())
    return *file_positions, images.sizes.tolist(), images.is_jpeg.tolist(), split.labels.tolist()


def originals(examples):
    """Image and label by height."""
    images = [(Image.open(io.BytesIO(e["image"])).convert("RGB"), e["label"]) for e in examples]
    return {image.height: (image, label) for image, label in images}


def check(split, examples):
    """Checks that all examples are present with their size, label and pixels."""
    known, order = originals(examples), np.random.default_rng(0).permutation(len(examples))
    assert sorted(split.images.sizes[:, 0]) == sorted(known) and split.images.is_jpeg.all()
    in_order = Split(split.images, split.labels, np.arange(len(order)))
    images = evaluation_images(in_order, RandomAreaCrop(32, 36, 0.08, flip=True), order)
    for i, image in zip(order, images, strict=True):
        original, label = known[split.images.sizes[i, 0]]
        assert split.images.sizes[i, 1] == original.width and split.labels[i] == label
        assert np.abs(image.astype(int) - pillow_evaluation_crop(original, 36, 32)).max() <= 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    examples = flowers()
    version = prepare(folder, examples)
    assert len(list(version.glob("*.tfrecord-*"))) == 3 * SHARDS
    return folder, version, examples


def test_records_are_read_with_their_labels_sizes_and_pixels(prepared):
    folder, _, examples = prepared
    source = read(folder)
    assert source.name == "tf_flowers" and source.class_names == NAMES
    assert {name: len(split.labels) for name, split in source.splits.items()} == SPLITS
    for name, split in source.splits.items():
        check(split, examples[name])
        assert split.skipped == 0 and len(set(split.images.file_id.tolist())) == SHARDS


def test_folder_of_a_prepared_version_is_read_without_its_code(prepared):
    folder, version, _ = prepared
    by_name, by_folder = read(folder), read("", source=str(version))
    assert by_folder.name == "tf_flowers" and by_folder.class_names == NAMES
    for name, split in by_name.splits.items():
        assert contents(by_folder.splits[name]) == contents(split)


def test_records_become_a_dataset(prepared):
    folder, _, _ = prepared
    dataset = load_dataset(fields(folder, validation_split="hold_out", validation_examples=5))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 25,
        "validation": 5,
        "test": 10,
    }
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert set(train.sizes[:, 0].tolist()).isdisjoint(validation.sizes[:, 0].tolist())
    assert np.bincount(validation.labels).tolist() == [1] * 5
    assert dataset.image_shape == (32, 32, 3) and "computed" in dataset.statistics_source


def test_shards_of_records_concatenate_to_the_batches(prepared):
    folder, _, _ = prepared
    dataset = load_dataset(fields(folder))
    view = dataset.preprocessing
    calls = (
        lambda shard: train_batches(
            dataset.splits["train"], view, batch_size=6, seed=1, epoch=2, shard=shard
        ),
        lambda shard: eval_batches(dataset.splits["test"], view, 6, shard=shard),
    )
    for batches_of in calls:
        batches, shards = batches_of(Shard()), [batches_of(Shard(i, 2)) for i in range(2)]
        for batch, *parts in zip(batches, *shards, strict=True):
            for field, *shard_fields in zip(batch, *parts, strict=True):
                np.testing.assert_array_equal(field, np.concatenate(shard_fields))


@pytest.mark.parametrize(
    ("splits", "chosen", "lengths"),
    [
        ({"train": 8, "test": 6}, {}, {"train": 8, "test": 6}),
        ({"train": 8, "validation": 6}, {}, {"train": 8, "test": 6}),
        ({"train": 8, "valid": 6, "test": 5}, {}, {"train": 8, "validation": 6, "test": 5}),
        ({"train": 8, "dev": 6, "other": 5}, {"test_split": "other"}, {"train": 8, "test": 5}),
        ({"train": 8}, {"test_examples": 5}, {"train": 8}),
    ],
)
def test_splits_have_the_roles_of_their_names(tmp_path, splits, chosen, lengths):
    prepare(tmp_path, flowers(splits))
    source = read(tmp_path, **chosen)
    actual = {name: len(split.labels) for name, split in source.splits.items()}
    assert actual == lengths | ({"validation": 6} if "dev" in splits else {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_split": "trian"}, r"config\.data\.train_split.*'trian'.*tf_flowers.*: train, "),
        ({"test_split": "tests"}, r"config\.data\.test_split.*'tests'.*: test, "),
        ({"test_split": "train"}, "test_split.*train_split.*'train'"),
    ],
)
def test_invalid_splits_raise(prepared, change, message):
    with pytest.raises(ValueError, match=message):
        read(prepared[0], **change)


def test_undecodable_records_are_skipped_and_later_ones_are_read(tmp_path, caplog):
    examples = flowers({"train": 20, "test": 3})
    valid = examples["train"][0]["image"]
    bad = {3: b"not an image", 4: b"", 11: valid[: len(valid) // 2], 19: valid[:30]}
    for i, contents in bad.items():
        examples["train"][i]["image"] = contents
    prepare(tmp_path, examples)
    with pytest.raises(ValueError, match="4 of 20 images of tf_flowers train"):
        read(tmp_path)
    source = read(tmp_path, max_undecodable=0.2)
    assert source.splits["train"].skipped == 4 and source.splits["test"].skipped == 0
    check(source.splits["train"], [e for i, e in enumerate(examples["train"]) if i not in bad])
    assert "4 of 20 images of tf_flowers train" in caplog.text
    assert caplog.text.count("tf_flowers-train.tfrecord-0000") >= 4
    assert "record at byte " in caplog.text


def test_missing_labels_raise_with_a_hint(tmp_path):
    examples = flowers({"train": 8, "test": 5, "validation": 5})
    for example in examples["test"]:
        example["label"] = -1
    prepare(tmp_path, examples)
    message = r"test label at index 0.*-1.*0 to 4; 5 labels.*config\.data\.test_split"
    with pytest.raises(ValueError, match=message):
        load_dataset(fields(tmp_path))
    dataset = load_dataset(fields(tmp_path, test_split="validation", validation_examples=5))
    assert (dataset.splits["test"].labels >= 0).all()


@pytest.mark.parametrize("preprocessing", ["random_area_crop", "padded_crop"])
def test_array_records_raise(tmp_path, preprocessing):
    pytest.importorskip("array_record")
    examples = [{"image": jpeg(make_image(32, 32, i)), "label": i % 5} for i in range(5)]
    prepare(tmp_path, {"train": examples, "test": examples}, "array_record", (32, 32, 3))
    with pytest.raises(ValueError, match=r"array_record.*tfrecord"):
        load_dataset(fields(tmp_path, preprocessing=preprocessing))


def test_records_of_one_size_can_become_arrays(tmp_path):
    examples = [{"image": jpeg(make_image(32, 32, i)), "label": i % 5} for i in range(10)]
    version = prepare(tmp_path, {"train": examples, "test": examples}, shape=(32, 32, 3))
    # By its name, the dataset would have the image shape of its TFDS code, which is unknown.
    dataset = load_dataset(fields("", version, preprocessing="padded_crop", validation_examples=5))
    test = dataset.splits["test"]
    assert test.images.shape == (10, 32, 32, 3)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(e["image"]))) for e in examples])
    distance = np.abs(test.images[:, None].astype(int) - pixels).max((2, 3, 4))
    assert (distance.min(1) <= 1).all() and sorted(distance.argmin(1)) == list(range(10))
    np.testing.assert_array_equal(test.labels, distance.argmin(1) % 5)


# Missing and damaged data


def test_second_load_reads_no_record_and_returns_the_same_splits(prepared, tmp_path, monkeypatch):
    seen, collect = [], indexing.collect
    monkeypatch.setattr(indexing, "collect", lambda *args: (seen.append(args), collect(*args))[1])
    first, second = (read(prepared[0], index_dir=str(tmp_path)) for _ in range(2))
    assert len(seen) == 3
    for name, split in first.splits.items():
        assert contents(split) == contents(second.splits[name])


@pytest.mark.parametrize("preprocessing", ["random_area_crop", "padded_crop"])
@pytest.mark.parametrize("repeated", [2, 0])
def test_file_with_another_number_of_records_raises(tmp_path, preprocessing, repeated):
    examples = [{"image": jpeg(make_image(32, 32, i)), "label": i % 5} for i in range(12)]
    version = prepare(tmp_path, {"train": examples, "test": examples}, shape=(32, 32, 3))
    file = sorted(version.glob("*train.tfrecord-*"))[1]
    file.write_bytes(file.read_bytes() * repeated)
    message = rf"train has {8 + 4 * repeated} records.* 12: .*{file.name} has {4 * repeated} .* 4;"
    with pytest.raises(ValueError, match=message):
        load_dataset(fields("", version, preprocessing=preprocessing, index_dir=str(tmp_path)))


def test_a_dataset_that_is_prepared_again_gets_a_new_index(tmp_path):
    examples, index_dir = flowers({"train": 10, "test": 5}), str(tmp_path / "index")
    prepare(tmp_path, examples)
    read(tmp_path, index_dir=index_dir)
    for split_examples in examples.values():
        for example in split_examples:
            example["label"] = (example["label"] + 1) % 5  # The same number of bytes.
    shutil.rmtree(tmp_path / "tf_flowers")
    prepare(tmp_path, examples)
    check(read(tmp_path, index_dir=index_dir).splits["train"], examples["train"])


@pytest.mark.parametrize("test_split", ["auto", "validation"])
def test_missing_dataset_raises_with_folder_and_command(tmp_path, test_split):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path, test_split=test_split)
    assert f"{tmp_path}/tf_flowers/3.0.1" in str(error.value)
    assert "download_and_prepare()" in str(error.value)


def test_incomplete_dataset_raises(tmp_path):
    (tmp_path / "tf_flowers/3.0.1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/tf_flowers"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda path: path.unlink(), lambda path: path.write_text("{"), lambda path: damage(path)],
)
def test_damaged_description_of_a_folder_raises_with_the_folder(prepared, tmp_path, change):
    folder = shutil.copytree(prepared[1], tmp_path / "1.0.0")
    change(folder / "dataset_info.json")
    with pytest.raises(ValueError, match=rf"{folder}: .*dataset_info\.json.*prepare"):
        read("", source=str(folder))


def damage(path):
    """Changes a JSON file to one that is valid and has another field."""
    path.write_text(path.read_text().replace('"splits"', '"spits"'))


def test_damaged_description_of_a_named_dataset_raises(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tf_flowers/3.0.1/features.json").write_text("")
    (tmp_path / "tf_flowers/3.0.1/dataset_info.json").write_text("")
    with pytest.raises(ValueError, match=r"tf_flowers.*TFDS cannot describe"):
        read(tmp_path)


@pytest.mark.parametrize("index", [0, 2])
def test_missing_shard_raises(prepared, tmp_path, index):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    name = f"tf_flowers-train.tfrecord-0000{index}-of-00003"
    (tmp_path / "tf_flowers/3.0.1" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*{name}"):
        read(tmp_path)


def other_records(_):
    """A file of one valid record that is not a protocol buffer, and not UTF-8."""
    import tensorflow as tf

    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            writer.write(b"\xff\xff\xffjunk")
        return file.read()


@pytest.mark.parametrize(
    "change", [lambda b: b[:-5], lambda b: b[:200] + b"!!" + b[202:], other_records]
)
def test_damaged_shard_is_named(prepared, tmp_path, change):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tf_flowers/3.0.1/tf_flowers-train.tfrecord-00001-of-00003"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StorageError, match=rf"{path}.* record"):
        read(tmp_path)


def test_negative_shard_lengths_are_reported(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tf_flowers/3.0.1/dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["-3"]
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=rf"{path}: shardLengths.*\[-3\]"):
        read(tmp_path)
