"""Image files decoded with Pillow: the batches, indexes and errors are those of TensorFlow."""

import dataclasses
import io
from pathlib import Path

import chex
import numpy as np
import pytest
from array_datasets import config as array_config
from encoded_samples import encoded, raw_png
from image_folders import folder, read, write_broken_images
from PIL import Image
from random_area_crops import CROP, load
from sample_images import make_image, write

from imta_jax.config import DataConfig
from imta_jax.data import HostPipeline, eval_batches, load_dataset, train_batches
from imta_jax.data.fingerprint import fingerprint, fingerprint_differences
from imta_jax.data.pipeline import inspection
from imta_jax.data.pipeline.inspection import IS_JPEG, Inspector

BOTH = ("tf_data", "pillow")


def jpeg(image, **options):
    return encoded(image, "JPEG", quality=90, **options)


def rotated(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif)


def unusual_files():
    """Files of every kind that is accepted, of sizes that are decoded at 1/1 to 1/8."""
    sizes = [(61, 83), (301, 211), (640, 911)]
    for i, (height, width) in enumerate(sizes):
        image = make_image(height, width, i, cells=9)
        for name in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
            yield f"{i} {name}.jpg", jpeg(image, subsampling=name)
        yield f"{i} progressive.jpg", jpeg(image, progressive=True)
        yield f"{i} gray.jpg", jpeg(image.convert("L"))
        yield f"{i} cmyk.jpg", jpeg(image.convert("CMYK"))
        yield f"{i} rgba.png", encoded(image.convert("RGBA"), "PNG")
        yield f"{i} palette.png", encoded(image.quantize(32), "PNG")
        for orientation in (3, 6, 8):
            yield f"{i} exif {orientation}.jpg", rotated(image, orientation)
    yield "deep.png", raw_png(16, 2)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The same folder, indexed and decoded by each library."""
    root = tmp_path_factory.mktemp("unusual")
    files = dict(unusual_files())
    write(root, {f"{split}/a/{n}": c for n, c in files.items() for split in ("train", "test")})
    fields = {"image_size": 32, "resize": 36, "exif_orientation": "apply"}
    return [load(root, pipeline=pipeline, **fields) for pipeline in BOTH]


def test_both_decoders_index_the_same_images(datasets):
    with_tensorflow, with_pillow = (dataset.splits["train"] for dataset in datasets)
    for field in dataclasses.fields(with_pillow.images):
        left, right = (getattr(s.images, field.name) for s in (with_tensorflow, with_pillow))
        assert field.name == "decoder" or np.array_equal(left, right), field.name
    assert [dataset.decoder for dataset in datasets] == list(BOTH)


def test_training_batches_of_both_decoders_are_equal(datasets):
    (split, pillow_split), differing = (dataset.splits["train"] for dataset in datasets), set()
    for epoch in (0, 1):
        draw = {"batch_size": 8, "seed": 3, "epoch": epoch}
        pairs = zip(
            train_batches(split, CROP, **draw),
            train_batches(pillow_split, CROP, **draw),
            strict=True,
        )
        for batch, other in pairs:
            chex.assert_trees_all_equal(batch[1:], other[1:], strict=True)
            differ = (batch.images != other.images).any(axis=(1, 3))  # [N, W]
            assert not differ[:, 1:-1].any()
            differing |= {split.images.name(i) for i in batch.index[differ.any(axis=1)]}
    # TensorFlow interpolates the chroma of the last column of a crop from one neighbor only.
    assert all("4:2:2" in name for name in differing)


def test_evaluation_batches_of_both_decoders_are_equal(datasets):
    batches = [list(eval_batches(dataset.splits["test"], CROP, 8)) for dataset in datasets]
    chex.assert_trees_all_equal(*batches, strict=True)


def test_resumed_epoch_continues_with_the_same_batches(datasets):
    split = datasets[1].splits["train"]
    arguments = {"batch_size": 4, "seed": 3, "epoch": 2}
    every = list(train_batches(split, CROP, **arguments))
    rest = list(train_batches(split, CROP, start_step=5, **arguments))
    chex.assert_trees_all_equal(every[5:], rest, strict=True)


def test_arrays_that_are_resized_are_equal_with_both():
    fields = {"preprocessing": "random_area_crop", "image_size": 16, "resize": 20, "min_area": 0.5}
    fields |= {"validation_examples": 20, "pipeline": "pillow"}
    dataset = load_dataset(array_config("fashion_mnist_small", **fields))
    split = dataset.splits["validation"].select(np.arange(12))
    for make in (
        lambda name: eval_batches(split, dataset.preprocessing, 5, pipeline=name),
        lambda name: train_batches(
            split, dataset.preprocessing, batch_size=5, seed=0, epoch=0, pipeline=name
        ),
    ):
        chex.assert_trees_all_equal(*(list(make(name)) for name in BOTH), strict=True)


def test_folder_of_one_size_becomes_the_same_arrays(tmp_path):
    root = folder(tmp_path)
    fields = {"preprocessing": "padded_crop", "validation_examples": 3}
    actual = [load(root, pipeline=name, **fields) for name in BOTH]
    for name in ("train", "test"):
        left, right = (dataset.splits[name].images for dataset in actual)
        np.testing.assert_array_equal(left, right)
    assert fingerprint(actual[1])["decoder"] == "pillow"


def test_both_decoders_reject_the_same_files(tmp_path):
    root = folder(tmp_path)
    write_broken_images(root)
    left, right = (read(root, pipeline=name, max_undecodable=0.5) for name in BOTH)
    for name, split in left.splits.items():
        assert split.skipped == right.splits[name].skipped
        assert split.findings == right.splits[name].findings
    assert left.splits["train"].skipped == 6


def test_large_images_are_inspected_a_few_at_a_time(monkeypatch):
    contents = encoded(make_image(64, 64), "JPEG", progressive=True)
    monkeypatch.setattr(inspection, "usable_cores", lambda: 1)
    small = Inspector(4 * 64 * 64 * 12 / 1e9).columns(contents)
    assert small[IS_JPEG] and small[inspection.REFUSAL] == 0
    large = Inspector(4 * (64 * 64 * 12 - 1) / 1e9).columns(contents)
    assert large[inspection.REFUSAL] == inspection.POSTPONED


@pytest.mark.parametrize("change", ["removed", "empty", "half", "other size"])
def test_file_that_changes_during_a_run_raises_with_its_name(tmp_path, change):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(12)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    split = load(root, image_size=32, resize=36, pipeline="pillow").splits["train"]
    path = Path(split.images.name(5))
    contents = path.read_bytes()
    path.unlink()
    if change != "removed":
        other = io.BytesIO()
        make_image(50, 40).save(other, "JPEG")
        new = {"empty": b"", "half": contents[: len(contents) // 2], "other size": other.getvalue()}
        path.write_bytes(new[change])
    with pytest.raises(OSError, match=rf"{path}") as error:
        list(train_batches(split, CROP, batch_size=len(split), seed=0, epoch=0))
    (line,) = str(error.value).splitlines()[2:]
    assert line.startswith(f"  {path}: now ")


def test_run_with_another_decoder_is_another_fingerprint(datasets):
    before, now = map(fingerprint, datasets)
    (line,) = fingerprint_differences(before, now)
    assert "'tf_data'" in line and "'pillow'" in line and "pipeline=tf_data" in line
    earlier = {name: value for name, value in before.items() if name != "decoder"}
    assert fingerprint_differences(earlier, before) == []
    assert fingerprint_differences(earlier, now) == [line]


def test_recorded_decoder_is_used_again_by_auto(tmp_path):
    root = folder(tmp_path, each=2)
    fields = {"preprocessing": "random_area_crop", "image_size": 24, "resize": 28}
    fields |= {"source": str(root), "validation_examples": 3, "index_dir": ""}
    config = DataConfig.from_mapping(fields)
    assert load_dataset(config).decoder == "tf_data"
    assert load_dataset(config, decoder="pillow").decoder == "pillow"
    explicit = dataclasses.replace(config, pipeline="tf_data")
    assert load_dataset(explicit, decoder="pillow").decoder == "tf_data"


def test_decoding_service_with_pillow_raises(datasets):
    split, host = datasets[1].splits["train"], HostPipeline(service="grpc://localhost:9")
    with pytest.raises(ValueError, match=r"data\.service.*grpc://localhost:9.*pillow"):
        train_batches(split, CROP, batch_size=4, seed=0, epoch=0, host=host)
