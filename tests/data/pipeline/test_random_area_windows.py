"""Windows of random-area crops: bounds, distribution and seeds."""

import math

import numpy as np
import pytest
from random_area_crops import CROP

from imta_jax.data import (
    RandomAreaCrop,
    epoch_plan,
)


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
    plan = epoch_plan(CROP, sizes, seed=3, epoch=5)
    for field, again in zip(plan, epoch_plan(CROP, sizes, seed=3, epoch=5), strict=True):
        np.testing.assert_array_equal(field, again)
    few = epoch_plan(CROP, sizes[:40], seed=3, epoch=5)
    np.testing.assert_array_equal(few.window, plan.window[:40])
    np.testing.assert_array_equal(few.flip, plan.flip[:40])
    changed = sizes.copy()
    changed[7] = 64, 48
    other = epoch_plan(CROP, changed, seed=3, epoch=5).window
    assert (other != plan.window).any(1).nonzero()[0].tolist() == [7]
    for change in ({"seed": 4, "epoch": 5}, {"seed": 3, "epoch": 6}):
        assert (epoch_plan(CROP, sizes, **change).window != plan.window).any(1).mean() > 0.9


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
