"""Image files with random-area crops: windows, pixels against Pillow, and pipelines."""

import gc
import itertools
import math
import weakref
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image
from sample_images import config, make_image, pillow_evaluation_crop, write

from imta_jax.data import (
    RandomAreaCrop,
    Shard,
    epoch_plan,
    eval_batches,
    evaluation_images,
    load_dataset,
    train_batches,
)
from imta_jax.data.pipeline import tf_decoding
from imta_jax.data.pipeline.batch_indices import BatchIndices
from imta_jax.data.pipeline.tf_pipeline import HostPipeline, decode_all, resized_batches

CROP = RandomAreaCrop(size=32, resize=36, min_area=0.08, flip=True)
# Height and width; evaluation resizes the shorter side to 256 and takes 224 pixels.
SIZES = [
    (256, 256),
    (224, 224),
    (255, 300),
    (500, 375),
    (333, 257),
    (60, 90),  # smaller
    (17, 23),
    (1, 1),
    (20, 900),  # panoramas
    (1100, 30),
    (1, 500),
    (1500, 2100),  # large
]


def load(root, **changes):
    fields = {"preprocessing": "random_area_crop", "validation_examples": 1, **changes}
    return load_dataset(config(root, **fields))


def opened(split, index):
    with Image.open(split.images.name(index)) as image:
        image.load()
        return image


def difference(image, other):
    return np.abs(image.astype(int) - other)


# Evaluation


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory):
    files = {"train/a/1.jpg": make_image(50, 60), "train/a/2.jpg": make_image(60, 50)}
    for i, (height, width) in enumerate(SIZES):
        for ending in ("jpg", "png"):
            # Detailed images, if they have enough pixels for more than noise.
            cells = max(2, min(height, width) // 12)
            files[f"test/a/{height}x{width}.{ending}"] = make_image(height, width, i, cells=cells)
    root = write(tmp_path_factory.mktemp("sizes"), files)
    return load(root).splits["test"]


def test_evaluation_equals_resize_and_center_crop_of_pillow(many_sizes):
    images = evaluation_images(
        many_sizes, RandomAreaCrop(224, 256, 0.08, True), np.arange(len(many_sizes))
    )
    assert len(images) == 2 * len(SIZES)
    for i, image in enumerate(images):
        expected = pillow_evaluation_crop(opened(many_sizes, i))
        assert difference(image, expected).max() <= 1, many_sizes.images.name(i)


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (31, 36), (32, 37), (1, 1), (64, 200)])
def test_evaluation_equals_pillow_at_other_sizes(many_sizes, size, resize):
    some = np.arange(0, len(many_sizes), 3)
    images = evaluation_images(many_sizes, RandomAreaCrop(size, resize, 0.08, True), some)
    for i, image in zip(some, images, strict=True):
        expected = pillow_evaluation_crop(opened(many_sizes, i), resize, size)
        assert difference(image, expected).max() <= 1, many_sizes.images.name(i)


def test_evaluation_windows_are_those_of_torchvision():
    sizes = np.array(SIZES)
    for size, window in zip(
        sizes, RandomAreaCrop(224, 256, 0.08, True).eval_windows(sizes), strict=True
    ):
        resized = [256 if side == min(size) else int(256 * side / min(size)) for side in size]
        corner = np.array([round((side - 224) / 2) for side in resized])
        scale = size / resized
        np.testing.assert_allclose(window, [*(corner * scale), *(224 * scale)], rtol=1e-5)


# Kinds of image files


def noise(height, width, seed):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def test_jpegs_of_every_kind_decode_as_in_pillow(tmp_path):
    variants = [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}]
    variants += [{"quality": 30}, {"restart_marker_blocks": 3}, {"optimize": True}]
    root = write(
        tmp_path, {"train/a/1.jpg": make_image(50, 60), "train/a/2.jpg": make_image(60, 50)}
    )
    (root / "test/a").mkdir(parents=True)
    for i, options in enumerate(variants):
        for k, (height, width) in enumerate([(97, 61), (130, 203)]):
            path = root / f"test/a/{i}{k}.jpg"
            noise(height, width, i).save(path, **{"quality": 80, **options})
    test = load(root).splits["test"]
    for i, image in enumerate(
        evaluation_images(test, RandomAreaCrop(64, 70, 0.1, True), np.arange(14))
    ):
        assert difference(image, pillow_evaluation_crop(opened(test, i), 70, 64)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "ending", "levels"),
    [
        ("L", "jpg", 1),
        ("CMYK", "jpg", 3),
        *((mode, "png", 1) for mode in ("L", "P", "1", "RGBA", "LA")),
    ],
)
def test_images_of_other_modes_become_rgb(tmp_path, mode, ending, levels):
    root = write(
        tmp_path, {"train/a/1.jpg": make_image(50, 60), "train/a/2.jpg": make_image(60, 50)}
    )
    for i, size in enumerate([(60, 90), (121, 83)]):
        image = make_image(*size, i) if mode in ("P", "1") else make_image(*size, i, mode)
        write(root, {f"test/a/{i}.{ending}": image.convert(mode)})
    dataset = load(root)
    assert dataset.image_shape == (224, 224, 3)
    test = dataset.splits["test"]
    assert opened(test, 0).mode == mode
    for i, image in enumerate(evaluation_images(test, dataset.preprocessing, np.arange(2))):
        assert image.shape == (224, 224, 3)
        assert difference(image, pillow_evaluation_crop(opened(test, i))).max() <= levels


# Training windows


def windows(height, width, count, crop=CROP, seed=0):
    sizes = np.broadcast_to([height, width], (count, 2))
    return epoch_plan(crop, sizes, seed=seed, epoch=0).window.astype(np.float64)


@pytest.mark.parametrize(
    "size", [(300, 400), (224, 224), (37, 50), (7, 9), (3000, 2000), (500, 900)]
)
@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_windows_lie_inside_with_area_and_ratio_in_bounds(size, min_area):
    crop = RandomAreaCrop(32, 36, min_area, flip=True)
    drawn = windows(*size, 5000, crop)
    top, left, height, width = drawn.T
    np.testing.assert_array_equal(drawn, np.rint(drawn))
    assert (top >= 0).all() and (left >= 0).all()
    assert (height >= 1).all() and (width >= 1).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    # The bounds hold up to the rounding of sides to whole pixels.
    central = (drawn == crop._windows(np.array([size], float), np.full((1, 10, 4), 2.0))).all(1)
    slack = 0.5 / height + 0.5 / width
    area = height * width / math.prod(size)
    assert (area[~central] >= (min_area * (1 - slack) - 1e-9)[~central]).all() and (area <= 1).all()
    ratio = width / height
    assert (ratio >= 3 / 4 * (1 - 2 * slack)).all() and (ratio <= 4 / 3 * (1 + 2 * slack)).all()


def test_areas_are_uniform_and_ratios_log_uniform():
    # In a square all ratios fit an area of up to 3/4, so that no attempt is rejected.
    _, _, height, width = windows(1000, 1000, 40_000).T
    area, log_ratio = height * width / 1e6, np.log(width / height)
    small = area < 0.75
    assert 0.5 < small.mean() < 0.9
    for values, low, high in ((area, 0.08, 0.75), (log_ratio, math.log(3 / 4), math.log(4 / 3))):
        quantile = np.sort((values[small] - low) / (high - low))
        expected = (np.arange(len(quantile)) + 0.5) / len(quantile)
        assert np.abs(quantile - expected).max() < 1.95 / math.sqrt(
            len(quantile)
        )  # Kolmogorov-Smirnov
    assert abs(np.corrcoef(area[small], log_ratio[small])[0, 1]) < 0.02


def torchvision_window(height, width, uniform, min_area=0.08):
    """RandomResizedCrop.get_params, with its draws from `uniform()`."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = height * width * (min_area + (1 - min_area) * uniform())
        ratio = math.exp(low + (high - low) * uniform())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform() * (height - h + 1)), int(uniform() * (width - w + 1)), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(400, 300), (300, 700), (500, 150)])
def test_windows_have_the_distribution_of_torchvision(size):
    rng = np.random.default_rng(1)
    expected = np.array([torchvision_window(*size, rng.random) for _ in range(4000)])
    drawn = windows(*size, 20_000)
    for statistic in (lambda w: w, lambda w: w**2, lambda w: w[:, 2:3] * w[:, 3:4]):
        left, right = statistic(drawn), statistic(expected.astype(float))
        error = np.sqrt(left.var(0) / len(left) + right.var(0) / len(right))
        assert (np.abs(left.mean(0) - right.mean(0)) < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((10, 1000), (0, 493, 10, 13)),
        ((1000, 10), (493, 0, 13, 10)),
        ((1, 5000), (0, 2499, 1, 1)),
        ((30, 1201), (0, 580, 30, 40)),
    ],
)
def test_panorama_that_no_window_fits_shows_its_center(size, window):
    drawn = windows(*size, 200)
    assert (drawn == window).all(1).mean() > 0.5
    assert torchvision_window(*size, lambda: 0.999) == window


def test_whole_image_is_shown_if_only_it_is_large_enough():
    drawn = windows(40, 40, 300, RandomAreaCrop(32, 36, 1.0, flip=False))
    assert (drawn == (0, 0, 40, 40)).all(1).mean() > 0.9


def test_windows_are_a_function_of_seed_epoch_and_index():
    sizes = np.random.default_rng(0).integers(20, 500, (300, 2))
    one = epoch_plan(CROP, sizes, seed=3, epoch=5)
    for field, again in zip(one, epoch_plan(CROP, sizes, seed=3, epoch=5), strict=True):
        np.testing.assert_array_equal(field, again)
    few = epoch_plan(CROP, sizes[:40], seed=3, epoch=5)
    np.testing.assert_array_equal(few.window, one.window[:40])
    np.testing.assert_array_equal(few.flip, one.flip[:40])
    changed = sizes.copy()
    changed[7] = 64, 48
    other = epoch_plan(CROP, changed, seed=3, epoch=5).window
    assert (other != one.window).any(1).nonzero()[0].tolist() == [7]
    for change in ({"seed": 4, "epoch": 5}, {"seed": 3, "epoch": 6}):
        assert (epoch_plan(CROP, sizes, **change).window != one.window).any(1).mean() > 0.9


def test_windows_do_not_depend_on_the_chunk_size(monkeypatch):
    from imta_jax.data.pipeline import preprocessing

    whole = windows(50, 60, 100)
    monkeypatch.setattr(preprocessing, "_EXAMPLES_PER_CHUNK", 7)
    np.testing.assert_array_equal(windows(50, 60, 100), whole)


def test_windows_are_the_same_in_every_numpy_version():
    sizes = [(300, 400), (400, 300), (64, 64), (500, 375), (10, 1000)]
    plan = epoch_plan(CROP, np.array(sizes), seed=1, epoch=2)
    assert plan.window.tolist() == [
        [85, 31, 193, 257],
        [58, 117, 105, 103],
        [2, 24, 26, 33],
        [117, 0, 375, 368],
        [0, 493, 10, 13],
    ]
    assert plan.flip.tolist() == [False, True, True, False, True]


# Training pixels


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """23 training and 9 test images, of sizes that are decoded at 1/1 to 1/8 of the resolution."""
    sizes = np.random.default_rng(7).integers(40, 420, (32, 2)).tolist()
    sizes[:4] = (60, 90), (900, 1300), (700, 720), (33, 700)
    root = tmp_path_factory.mktemp("images")
    for i, size in enumerate(sizes):
        ending = "png" if i % 5 == 3 else "jpg"
        split = "train" if i < 23 else "test"
        write(root, {f"{split}/{i % 2}/{i:02}.{ending}": make_image(*size, i, cells=3)})
    return load(
        root, image_size=32, resize=36, validation_split="test", test_split="carve", test_examples=2
    )


def stacked(batches):
    return [np.concatenate(values) for values in zip(*batches, strict=True)]


def test_training_pixels_are_those_of_the_window_in_the_plan(image_files):
    split, seen = image_files.splits["train"], set()
    for epoch in range(4):
        plan = epoch_plan(CROP, split.sizes, seed=0, epoch=epoch)
        for batch in train_batches(split, CROP, batch_size=7, seed=0, epoch=epoch):
            np.testing.assert_array_equal(batch.labels, split.labels[batch.index])
            for image, i in zip(batch.images, batch.index, strict=True):
                top, left, height, width = plan.window[i].astype(int)
                shown = opened(split, i).crop((left, top, left + width, top + height))
                expected = np.asarray(shown.resize((32, 32), Image.Resampling.BILINEAR))
                expected = expected[:, ::-1] if plan.flip[i] else expected
                ratio = 2 ** min(3, int(math.log2(max(1, min(height, width) / 32))))
                seen.add((ratio if split.images.is_jpeg[i] else 0, bool(plan.flip[i])))
                assert difference(image, expected).mean() < 8, (
                    split.images.name(i),
                    plan.window[i],
                )
    assert seen == {(ratio, flip) for ratio in (0, 1, 2, 4, 8) for flip in (False, True)}


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_extra_decoded_columns_do_not_change_the_pixels(tmp_path, monkeypatch, subsampling):
    for i in range(16):
        path = tmp_path / f"{('train', 'test')[i % 2]}/{i // 2 % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = make_image(150 + 30 * i, 170 + 25 * i, i, cells=40)
        image.save(path, quality=90, subsampling=subsampling)
    parts = {"validation_split": "test", "test_split": "carve", "test_examples": 2}
    dataset = load(tmp_path, image_size=32, resize=36, **parts)
    train, validation = dataset.splits["train"], dataset.splits["validation"]

    def pixels():
        epochs = [train_batches(train, CROP, batch_size=6, seed=0, epoch=e) for e in range(8)]
        batches = itertools.chain(*epochs, eval_batches(validation, CROP, batch_size=8))
        return np.concatenate([batch.images for batch in batches])

    expected = pixels()
    monkeypatch.setattr(tf_decoding, "_BLOCK", 1)
    np.testing.assert_array_equal(pixels(), expected)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_windows_at_full_resolution_have_the_pixels_of_the_whole_image(tmp_path, subsampling):
    for i in range(8):
        path = tmp_path / f"{('train', 'test')[i % 2]}/{i // 2 % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(80, 90, i).save(path, quality=80, subsampling=subsampling)
    parts = {"validation_split": "test", "test_split": "carve", "test_examples": 2}
    images = load(tmp_path, image_size=32, resize=36, **parts).splits["validation"].images
    whole = decode_all(images[:1])[0]
    lefts = [*range(35), 57, 58]
    window = np.array([(left % 49, left, 32, 32) for left in lefts], np.float32)
    indices = BatchIndices(np.zeros(len(lefts), np.int64), window, np.zeros(len(lefts), bool))
    ((found, _),) = resized_batches(
        images, indices, len(lefts), HostPipeline(), size=32, exact=False
    )
    for image, (top, left, _, _) in zip(found, window.astype(int), strict=True):
        np.testing.assert_array_equal(image, whole[top : top + 32, left : left + 32])


def test_flip_only_mirrors_the_crop(image_files):
    split = image_files.splits["train"]
    unflipped = RandomAreaCrop(CROP.size, CROP.resize, CROP.min_area, flip=False)
    arguments = {"batch_size": len(split), "seed": 2, "epoch": 1}
    (flipped,), (straight,) = (
        list(train_batches(split, crop, **arguments)) for crop in (CROP, unflipped)
    )
    flip = epoch_plan(CROP, split.sizes, seed=2, epoch=1).flip[flipped.index]
    assert 0.2 < flip.mean() < 0.8
    np.testing.assert_array_equal(flipped.index, straight.index)
    expected = np.where(flip[:, None, None, None], straight.images[:, :, ::-1], straight.images)
    np.testing.assert_array_equal(flipped.images, expected)


# Batches


def train(split, batch_size=4, **changes):
    return train_batches(split, CROP, batch_size=batch_size, seed=5, epoch=3, **changes)


def assert_same(left, right):
    chex.assert_trees_all_equal(list(left), list(right), strict=True)


def concatenated(shards):
    """The global batches, from the local batches of several processes."""
    return [
        type(batches[0])(*(np.concatenate(values) for values in zip(*batches, strict=True)))
        for batches in zip(*shards, strict=True)
    ]


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_training_batches_concatenate_to_the_batches(image_files, count):
    split = image_files.splits["train"]
    shards = [list(train(split, shard=Shard(i, count))) for i in range(count)]
    assert all(batch.images.shape == (4 // count, 32, 32, 3) for shard in shards for batch in shard)
    assert_same(concatenated(shards), train(split))


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_evaluation_batches_concatenate_to_the_batches(image_files, count):
    split = image_files.splits["validation"]
    shards = [list(eval_batches(split, CROP, 4, shard=Shard(i, count))) for i in range(count)]
    assert [len(shard) for shard in shards] == [3] * count
    assert_same(concatenated(shards), eval_batches(split, CROP, 4))
    index = [batch.index[batch.mask] for shard in shards for batch in shard]
    assert sorted(np.concatenate(index).tolist()) == list(range(9))


def test_shard_reads_only_its_own_images(tmp_path):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(8)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    split = load(root, image_size=32, resize=36).splits["test"]
    whole = [list(train(split)), list(eval_batches(split, CROP, 4))]
    second = Shard(1, 2)
    for batches, again in zip(
        whole,
        (lambda: train(split, shard=second), lambda: eval_batches(split, CROP, 4, shard=second)),
        strict=True,
    ):
        others = np.concatenate([batch.index[:2] for batch in batches])
        hidden = [tmp_path / split.images.name(i) for i in others]
        assert len(hidden) == 4
        for path in hidden:
            path.rename(path.with_suffix(".hidden"))
        expected = np.concatenate([batch.images[2:] for batch in batches])
        np.testing.assert_array_equal(stacked(again())[0], expected)
        for path in hidden:
            path.with_suffix(".hidden").rename(path)


def test_batch_size_does_not_change_any_image(image_files):
    split = image_files.splits["train"]
    one, four, ten = (stacked(train(split, size)) for size in (1, 4, 10))
    for a, b, c in zip(one, four, ten, strict=True):
        np.testing.assert_array_equal(a[:20], b)
        np.testing.assert_array_equal(a[:20], c)
    split = image_files.splits["validation"]
    expected = evaluation_images(split, CROP, np.arange(9))
    for size in (1, 4, 16):
        images, _, mask, _ = stacked(eval_batches(split, CROP, size))
        np.testing.assert_array_equal(images[mask], expected)


@pytest.mark.parametrize("start_step", [1, 4, 5])
def test_start_step_skips_the_batches_before_it(image_files, start_step):
    split = image_files.splits["train"]
    assert_same(train(split, start_step=start_step), list(train(split))[start_step:])


def test_padding_is_masked_and_zero(image_files):
    split = image_files.splits["validation"]
    images, labels, mask, index = stacked(eval_batches(split, CROP, 4))
    np.testing.assert_array_equal(mask, [True] * 9 + [False] * 3)
    np.testing.assert_array_equal(index, [*range(9), -1, -1, -1])
    np.testing.assert_array_equal(labels[:9], split.labels)
    assert not images[9:].any() and not labels[9:].any() and images[:9].any((1, 2, 3)).all()


def test_decoders_are_made_once_and_freed_with_their_images(tmp_path, monkeypatch):
    write(
        tmp_path,
        {
            f"{split}/a/{i}.jpg": make_image(40, 50, i)
            for split in ("train", "test")
            for i in range(4)
        },
    )
    dataset = load(tmp_path, image_size=32, resize=36)
    made, make = [], tf_decoding._new_decoder
    monkeypatch.setattr(tf_decoding, "_new_decoder", lambda *a: made.append(a[1:]) or make(*a))
    first = list(train(dataset.splits["train"], batch_size=3))
    assert made
    once = list(made)
    assert_same(train(dataset.splits["train"], batch_size=3), first)
    assert made == once
    images = weakref.ref(dataset.splits["train"].images)
    del dataset, first
    gc.collect()
    assert images() is None


def test_image_removed_during_a_run_raises_with_its_name(tmp_path):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(4)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    dataset = load(root, image_size=32, resize=36)
    (root / "test/a/1.jpg").unlink()
    with pytest.raises(OSError, match=r"(?s)test/a/1\.jpg.*run the same command again"):
        list(eval_batches(dataset.splits["test"], dataset.preprocessing, 4))


@pytest.mark.parametrize("contents", [b"", b"not an image", None])
def test_image_damaged_during_a_run_raises_with_its_name(tmp_path, contents):
    names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(20)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    split = load(root, image_size=32, resize=36).splits["train"]
    path = split.images.name(11)
    half = Path(path).read_bytes()[:400]
    Path(path).write_bytes(half if contents is None else contents)
    with pytest.raises(OSError, match="reading images failed") as error:
        list(train_batches(split, CROP, batch_size=len(split), seed=0, epoch=0))
    assert str(error.value).splitlines()[2:] == [f"  {path}"]
    assert "{{" not in str(error.value)
    assert "Iterator::" not in str(error.value)


def test_statistics_are_of_evaluation_crops_of_training_images(tmp_path):
    names = [f"{split}/a/{i}.png" for split in ("train", "test") for i in range(6)]
    root = write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    dataset = load(root, image_size=32, resize=36)
    train = dataset.splits["train"]
    pixels = np.stack([pillow_evaluation_crop(opened(train, i), 36, 32) for i in range(5)]) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=2e-3)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), atol=2e-3)
    assert dataset.statistics_source.startswith("computed from 5 ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 223}, r"config\.data\.resize.*223.*224"),
        ({"image_size": 0}, "image_size.*0"),
        ({"min_area": 0.0}, r"config\.data\.min_area.*0\.0"),
        ({"min_area": 1.5}, r"config\.data\.min_area.*1\.5"),
        (
            {"preprocessing": "random_area"},
            r"config\.data\.preprocessing.*'random_area'.*random_area_crop",
        ),
    ],
)
def test_invalid_preprocessing_raises(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **change)


def test_numpy_pipeline_for_image_files_raises(image_files):
    with pytest.raises(ValueError, match=r'pipeline.*"numpy".*"tf_data"'):
        train(image_files.splits["train"], pipeline="numpy")
