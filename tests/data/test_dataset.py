"""Splits, held-out images, channel statistics and validation of source data."""

import numpy as np
import pytest

from imta_jax.data import DatasetInfo, dataset_info, load_dataset, preview, validate_split
from imta_jax.data.channel_statistics import channel_statistics
from imta_jax.data.dataset import build_dataset
from imta_jax.data.holdout import class_quotas, stratified_holdout
from imta_jax.data.padding import pad_to_multiple
from imta_jax.data.pipeline.preprocessing import PaddedCrop
from imta_jax.data.source_validation import SourceData, SourceSplit, validate_source

EMBEDDED = {
    "source": "fashion_mnist_small",
    "data_dir": "",
    "download": False,
    "validation_examples": 1000,
    "validation_seed": 0,
}


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(EMBEDDED)


@pytest.fixture(scope="module")
def embedded_arrays():
    from imta_jax.data.sources import SourceRequest, load_source

    return load_source(SourceRequest("fashion_mnist_small")).splits


def digests(split):
    return [image.tobytes() for image in split.images]


def test_embedded_dataset_has_its_description(dataset):
    assert dataset.name == "fashion_mnist_small"
    assert dataset.num_classes == 10 and dataset.class_names[9] == "ankle boot"
    assert dataset.image_shape == (32, 32, 1)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 9000,
        "validation": 1000,
        "test": 2000,
    }
    for split in dataset.splits.values():
        assert split.images.dtype == np.uint8 and split.images.shape[1:] == dataset.image_shape
        assert split.labels.dtype == np.int32 and split.source_index.dtype == np.int64


def test_info_describes_the_dataset_without_its_images(dataset):
    expected = DatasetInfo("fashion_mnist_small", 10, (32, 32, 1))
    assert dataset.info == dataset_info(EMBEDDED) == expected


def test_splits_are_disjoint_and_complete_by_source_index(dataset):
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    indices = np.concatenate([train.source_index, validation.source_index])
    np.testing.assert_array_equal(np.sort(indices), np.arange(10_000))
    np.testing.assert_array_equal(dataset.splits["test"].source_index, np.arange(2000))


def test_splits_are_disjoint_by_content(dataset):
    seen = {name: set(digests(split)) for name, split in dataset.splits.items()}
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_source_index_is_the_position_in_the_source(dataset, embedded_arrays):
    for name, source in (("train", "train"), ("validation", "train"), ("test", "test")):
        split, (images, labels, *_) = dataset.splits[name], embedded_arrays[source]
        np.testing.assert_array_equal(split.images[:, 2:-2, 2:-2], images[split.source_index])
        np.testing.assert_array_equal(split.labels, labels[split.source_index])


def test_padding_is_zero_and_symmetric(dataset):
    border = np.ones((32, 32), bool)
    border[2:-2, 2:-2] = False
    assert not dataset.splits["train"].images[:, border].any()


@pytest.mark.parametrize(("size", "padded"), [(28, 32), (32, 32), (1, 8), (33, 40), (224, 224)])
def test_size_is_padded_to_the_next_multiple_of_eight(size, padded):
    images = np.full((2, size, 32, 3), 7, np.uint8)
    result = pad_to_multiple(images)
    assert result.shape == (2, padded, 32, 3)
    np.testing.assert_array_equal(result[:, (padded - size) // 2 :][:, :size], images)
    assert int(result.sum()) == int(images.sum())


def test_validation_is_stratified(dataset):
    assert np.bincount(dataset.splits["validation"].labels).tolist() == [100] * 10


def test_holdout_is_proportional_to_within_one_image_per_class():
    labels = np.repeat(np.arange(7), [1, 3, 10, 33, 64, 200, 2])
    for examples in (7, 50, 199, 312):
        held_out = stratified_holdout(labels, examples=examples, seed=3)
        exact = examples * np.bincount(labels) / len(labels)
        assert held_out.sum() == examples
        assert (np.abs(np.bincount(labels[held_out], minlength=7) - exact) < 1).all()


def test_quotas_add_up_and_do_not_exceed_the_class_size():
    counts = np.array([5, 0, 1, 1, 1])
    for examples in range(1, 9):
        quotas = class_quotas(counts, examples)
        assert quotas.sum() == examples and (quotas <= counts).all()


def test_holdout_depends_on_its_seed_only(dataset):
    again = load_dataset({**EMBEDDED, "data_dir": "elsewhere", "download": True})
    other = load_dataset({**EMBEDDED, "validation_seed": 1})
    np.random.seed(5)  # noqa: NPY002 (the global generator must have no effect)
    validation = dataset.splits["validation"].source_index
    np.testing.assert_array_equal(validation, again.splits["validation"].source_index)
    assert (validation != other.splits["validation"].source_index).mean() > 0.9


def test_holdout_is_the_same_in_every_numpy_version():
    held_out = stratified_holdout(np.arange(40) % 2, examples=6, seed=0)
    assert np.flatnonzero(held_out).tolist() == [2, 3, 11, 13, 20, 32]


def test_statistics_normalize_training_images_to_mean_0_std_1(dataset):
    images = dataset.splits["train"].images[:, 2:-2, 2:-2]
    normalized = (images / 255 - dataset.mean) / dataset.std
    assert abs(normalized.mean()) < 1e-9 and abs(normalized.std() - 1) < 1e-9
    assert "computed from the training images" in dataset.statistics_source


def test_statistics_are_per_channel():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 6, 3), np.uint8)
    images[..., 1] //= 3
    mean, std, _ = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_statistics_exclude_validation_images(dataset):
    other = load_dataset({**EMBEDDED, "validation_seed": 1})
    assert other.mean != dataset.mean


def test_constant_channel_raises():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    images[..., 2] = 9
    with pytest.raises(ValueError, match=r"channel 2.*9"):
        channel_statistics(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_examples": 10_000}, "validation_examples.*10000"),
        ({"validation_examples": 9}, "validation_examples.*10.*9"),
        ({"validation_examples": 0}, "validation_examples.*10.*found 0"),
        ({"validation_examples": -1}, "validation_examples.*-1"),
        ({"validation_seed": -2}, "validation_seed.*-2"),
    ],
)
def test_invalid_holdout_raises(change, message):
    with pytest.raises(ValueError, match=message):
        load_dataset({**EMBEDDED, **change})


IMAGES = np.zeros((6, 8, 8, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, "here images.*float32.*uint8"),
        (IMAGES[..., :2], LABELS, r"\(6, 8, 8, 2\).*\[N, H, W, C\]"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, r"\(6, 3, 8, 8\).*\[N, H, W, C\]"),
        (IMAGES[:, 0, 0], LABELS, r"\(6, 3\)"),
        (IMAGES[:0], LABELS[:0], r"here images.*\(0, 8, 8, 3\)"),
        (IMAGES, LABELS / 2, "here labels.*float64.*integers"),
        (IMAGES, LABELS == 1, "here labels.*bool.*integers"),
        (IMAGES, LABELS[:, None], r"here labels.*\(6, 1\)"),
        (IMAGES, LABELS[:-1], "here.*6 images.*5 labels"),
        (IMAGES, np.array([0, 1, 7, 3, 1, 2]), "label at index 2.*7.*0 to 2.*2 labels"),
        (IMAGES, np.array([0, 1, 1, 1, -1, 2]), "label at index 4.*-1.*0 to 2"),
    ],
)
def test_invalid_arrays_raise(images, labels, message):
    with pytest.raises(ValueError, match=message):
        validate_split("here", images, labels, num_classes=3)


@pytest.mark.parametrize("label", [6, 2**40])
def test_unnamed_labels_beyond_the_number_of_images_raise(label):
    labels = np.array([0, 1, 2, label, 1, 2])
    with pytest.raises(ValueError, match=rf"label at index 3.*{label}.*6"):
        validate_source(SourceData("here", {"train": SourceSplit(IMAGES, labels)}))
    few = validate_source(
        SourceData("here", {"train": SourceSplit(IMAGES, np.array([0, 0, 5, 1, 1, 2]))})
    )
    assert few.class_names == ("0", "1", "2", "3", "4", "5")


def test_class_without_validation_images_is_logged(caplog):
    images = np.random.default_rng(0).integers(0, 256, (3, *IMAGES.shape), np.uint8)
    splits = {name: SourceSplit(images[i], LABELS) for i, name in enumerate(("train", "test"))}
    splits["validation"] = SourceSplit(images[2][:2], LABELS[:2])
    source = validate_source(SourceData("few", splits, ("cat", "dog", "owl")))
    build_dataset(source, PaddedCrop(2, True), validation_examples=0, validation_seed=0)
    (message,) = caplog.messages
    assert "'validation'" in message and "owl" in message


@pytest.mark.parametrize(("batch_size", "warns"), [(8, False), (9, True)])
def test_preview_warns_of_a_batch_size_that_training_rejects(caplog, batch_size, warns):
    assert preview._feasible_batch_size(batch_size, 8) == 8
    assert ("config.phase_one.batch_size must be at most 8" in caplog.text) == warns


@pytest.mark.parametrize(("names", "hints"), [(None, True), (("cat", "dog", "owl"), False)])
def test_labels_that_start_at_1_are_reported_if_classes_have_no_names(caplog, names, hints):
    images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
    from_one = np.maximum(LABELS, 1)
    splits = {name: SourceSplit(images, from_one) for name in ("train", "validation", "test")}
    source = validate_source(SourceData("one", splits, names))
    build_dataset(source, PaddedCrop(2, True), validation_examples=0, validation_seed=0)
    assert ("start at 0" in caplog.text) == hints


def test_valid_arrays_pass_with_and_without_channels():
    validate_split("here", IMAGES, LABELS, num_classes=3)
    validate_split("here", IMAGES[..., 0], LABELS.astype(np.uint8))
