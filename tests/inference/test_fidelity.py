"""Predictions of `python -m imta_jax.inference` for files equal those of the evaluation."""

import json

import numpy as np
import pytest
import tiny_run
from flax import nnx
from sample_images import config, make_image, write

from imta_jax.cli.run import run
from imta_jax.data import load_dataset
from imta_jax.evaluation import (
    budget_curve,
    collect_predictions,
    exit_costs,
    load_predictions,
    operating_points,
)
from imta_jax.evaluation.predictions import confidence
from imta_jax.evaluation.thresholds import exit_of
from imta_jax.inference import AdaptiveClassifier, export_classifier, export_run, load_exported
from imta_jax.inference.command import main
from imta_jax.inference.image_files import read_image
from imta_jax.models import build_classifier

CLASSES, TEST_IMAGES = 3, 12
RESIZED = {"preprocessing": "random_area_crop", "image_size": 32, "resize": 37}


def image_of(i, shape):
    return make_image(*shape[:2], seed=i, mode="L" if shape[2] == 1 else "RGB", cells=4)


def array_source(root, shape):
    """An .npz, and its test images as lossless files."""
    arrays = {}
    for name, count in (("train", 9), ("test", TEST_IMAGES)):
        images = [np.asarray(image_of(i, shape)).reshape(shape) for i in range(count)]
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images, np.arange(count) % CLASSES
    np.savez(root / "source.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    (root / "files").mkdir()
    for i in range(TEST_IMAGES):
        image_of(i, shape).save(root / "files" / f"{i:02}.png")
    return root / "source.npz", sorted((root / "files").iterdir())


def folder_source(root, ending, sizes, mode):
    """A folder of images, and its test files in the order of the dataset."""
    files = {}
    for split, count in (("train", 9), ("test", TEST_IMAGES)):
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            cells = max(4, min(height, width) // 8)  # Detailed, for JPEG's chroma subsampling.
            image = make_image(height, width, seed=i, mode=mode[i % len(mode)], cells=cells)
            files[f"{split}/{'abc'[i % CLASSES]}/{i:02}.{ending}"] = image
    write(root / "source", files)
    return root / "source", None


CASES = {
    "28x28 gray": lambda root: (*array_source(root, (28, 28, 1)), {}),
    "50x50 rgb": lambda root: (*array_source(root, (50, 50, 3)), {}),
    "32x32 rgb": lambda root: (*array_source(root, (32, 32, 3)), {}),
    "27x30 rgb": lambda root: (*array_source(root, (27, 30, 3)), {}),
    "40x50 gray, resized": lambda root: (*array_source(root, (40, 50, 1)), RESIZED),
    "28x28 png": lambda root: (*folder_source(root, "png", [(28, 28)], ["RGB", "L"]), {}),
    "28x28 jpg": lambda root: (*folder_source(root, "jpg", [(28, 28)], ["RGB", "L"]), {}),
    "large png": lambda root: (
        *folder_source(root, "png", [(90, 120), (121, 77), (40, 300), (20, 25)], ["RGB", "L"]),
        RESIZED,
    ),
    "large jpg": lambda root: (
        *folder_source(root, "jpg", [(375, 500), (121, 77), (41, 303), (20, 25)], ["RGB", "L"]),
        RESIZED,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A dataset, its test files, an export, a classifier, and the evaluation's predictions."""
    root = tmp_path_factory.mktemp("case")
    source, files, changes = CASES[request.param](root)
    dataset = load_dataset(config(source, validation_examples=3, **changes))
    if files is None:
        images = dataset.splits["test"].images
        files = (
            sorted((source / "test").rglob("*.*"))
            if isinstance(images, np.ndarray)
            else [images.name(i) for i in range(len(images))]
        )
    model = {**tiny_run.NETWORK, "num_exits": 2}
    classifier = build_classifier(
        model, num_classes=CLASSES, image_shape=dataset.image_shape, rngs=nnx.Rngs(0)
    )
    validation, test = (
        collect_predictions(
            classifier,
            dataset.splits[name],
            mean=dataset.mean,
            std=dataset.std,
            batch_size=8,
            preprocessing=dataset.preprocessing,
        )
        for name in ("validation", "test")
    )
    costs = exit_costs(classifier)
    curve = budget_curve(validation, test, costs)
    export_classifier(
        classifier,
        root / "export",
        points=operating_points(curve.rows("mean_macs"), costs.macs[-1]),
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        preprocessing=dataset.preprocessing,
        platforms=("cpu",),
    )
    return dataset, files, root / "export", classifier, test


def threshold_between(confidences):
    """A threshold in the largest gap of the inner confidences, where rounding changes no exit."""
    inner = np.sort(confidences)[2:-2]
    widest = np.diff(inner).argmax()
    return float(inner[widest] + inner[widest + 1]) / 2


def test_command_predicts_files_as_the_evaluation_predicts_images(case, capsys):
    _, files, export, _, test = case
    probabilities = confidence(test.logits)
    threshold = threshold_between(probabilities[0])
    exits = exit_of(probabilities, [threshold, 0.0])
    assert 0 < exits.sum() < len(files)
    options = [f"--thresholds={threshold},0", "--json", "--batch-size=4"]
    assert main([str(export), *map(str, files), *options]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    at_exit = test.logits[exits, np.arange(len(files))]
    assert [row["class"] for row in printed] == at_exit.argmax(axis=-1).tolist()
    assert [row["exit"] - 1 for row in printed] == exits.tolist()
    actual = [row["confidence"] for row in printed]
    np.testing.assert_allclose(actual, probabilities[exits, np.arange(len(files))], atol=1e-5)
    correct = [row["class"] == label for row, label in zip(printed, test.labels, strict=True)]
    assert np.mean(correct) == np.mean(at_exit.argmax(axis=-1) == test.labels)


def test_files_are_read_as_the_pixels_of_the_evaluation(case):
    from imta_jax.data import evaluation_images

    dataset, files, export, _, _ = case
    transform = load_exported(export).transform
    assert transform == dataset.evaluation_transform
    split = dataset.splits["test"]
    expected = evaluation_images(split, dataset.preprocessing, np.arange(len(split)))
    actual = np.stack([read_image(file, transform).pixels for file in files])
    np.testing.assert_array_equal(actual, expected)


def test_images_are_padded_as_in_training(case):
    dataset, _, export, classifier, test = case
    transform = dataset.evaluation_transform
    if transform.resize is not None:
        pytest.skip("images are resized, not padded")
    (above, _), (left, _) = transform.padding
    height, width = transform.source_size
    padded = dataset.splits["test"].images
    images = padded[:, above : above + height, left : left + width]
    mean, std = (np.asarray(values, np.float32) for values in (dataset.mean, dataset.std))
    floats = ((images / np.float32(255) - mean) / std).astype(np.float32)
    options = {"max_batch_size": 16, "batch_sizes": (16,), "num_workers": 1}
    from_export = AdaptiveClassifier(load_exported(export).network, [0, 0], **options)
    direct = AdaptiveClassifier(classifier, [0, 0], transform=transform, **options)
    for adaptive in (from_export, direct):
        for inputs in (images, padded, floats):
            np.testing.assert_allclose(adaptive.logits(inputs), test.logits, atol=1e-4)
    wrong = images[:, 1:]
    with pytest.raises(ValueError, match=rf"\[N, {height}, {width}, .*{list(wrong.shape)[1]}"):
        from_export.predict(wrong)


@pytest.mark.usefixtures("compilation_cache")
def test_run_and_its_export_classify_images_before_padding(source, tmp_path):
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    for name in ("train_images", "test_images"):
        arrays[name] = arrays[name][:, 1:14, :15]  # 13 x 15 pixels, padded to 16 x 16.
    np.savez(tmp_path / "cut.npz", **arrays)
    config = tiny_run.tiny_config(
        tmp_path / "cut.npz", phase_one__total_epochs=1, phase_two__total_epochs=0
    )
    for mode in ("phase_one", "evaluate"):
        run(config, tmp_path / "run", mode)
    export_run(tmp_path / "run", tmp_path / "export", platforms=("cpu",))
    expected = load_predictions(tmp_path / "run" / "evaluation" / "logits_test.npz").logits
    options = {"max_batch_size": 32, "batch_sizes": (32,), "num_workers": 1, "budget": 1.0}
    for adaptive in (
        AdaptiveClassifier.from_run(tmp_path / "run", **options),
        AdaptiveClassifier.from_export(tmp_path / "export", **options),
    ):
        assert adaptive.network.transform.padding == ((1, 2), (0, 1))
        np.testing.assert_allclose(adaptive.logits(arrays["test_images"]), expected, atol=1e-4)
        with pytest.raises(
            ValueError, match=r"\[N, 13, 15, 1\].*\[N, 16, 16, 1\].*\(1, 14, 15, 1\)"
        ):
            adaptive.predict(np.zeros((1, 14, 15, 1), np.uint8))
