"""Mixup, cutmix, random erasing and RandAugment of batches: invariants and reproducibility."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from imta_jax.data.pipeline.batch_augmentation import BatchAugmentation
from imta_jax.data.pipeline.mixing import mix_images, mixed_labels, mixup, random_rectangles
from imta_jax.data.pipeline.random_erasing import random_erasing
from imta_jax.distributed import batch_sharding, data_mesh, place_batch
from imta_jax.types import Batch

ALL = {
    "randaugment_operations": 2,
    "random_erasing": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}
COUNT, SIZE, CLASSES = 64, 16, 5


def augmentation(seed=0, **fields):
    changes = {f"phase_one__{name}": value for name, value in fields.items()}
    settings = tiny_run.run_config("unused.npz", **changes).phase_one
    return BatchAugmentation(settings, CLASSES, seed)


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, COUNT).astype(np.int32)
    return Batch(images, labels, np.ones(COUNT, bool), np.arange(COUNT, dtype=np.int32))


@pytest.fixture(scope="module")
def mix():
    """Mixes at most four times: compiled once per pair of parameters."""

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def mix(key, mixup_alpha, cutmix_alpha, images, labels):
        alphas = {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha}
        return mix_images(key, images, labels, **alphas, num_classes=CLASSES)

    return mix


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_identical_images_stay_identical_and_labels_keep_their_mass(mix, alphas, batch):
    same = np.broadcast_to(batch.images[:1], batch.images.shape)
    images, labels = mix(jax.random.key(3), *alphas, same, batch.labels)
    np.testing.assert_array_equal(images, same)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    assert (labels >= 0).all()
    own = np.asarray(labels)[np.arange(COUNT), batch.labels]
    other = np.asarray(labels)[np.arange(COUNT), np.roll(batch.labels, 1)]
    differ = batch.labels != np.roll(batch.labels, 1)
    np.testing.assert_allclose((own + other)[differ], 1, rtol=1e-6)


def test_cutmix_labels_have_exactly_the_fraction_of_the_pixels(mix):
    """Image i is filled with i, so that each pixel shows which image it comes from."""
    values = np.arange(COUNT, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (COUNT, SIZE, SIZE, 1))
    labels = (values % 2).astype(np.int32)
    mixed, actual = mix(jax.random.key(5), 0.0, 1.0, images, labels)
    mixed = np.asarray(mixed)
    other = (mixed == np.roll(values, 1)[:, None, None, None]).mean(axis=(1, 2, 3))
    own = (mixed == values[:, None, None, None]).mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(own + other, 1)
    np.testing.assert_array_equal(np.asarray(actual)[np.arange(COUNT), 1 - labels], other)
    assert 0.2 < other.mean() < 0.6  # Below 1/2, since rectangles are clipped.


def test_cutmix_rectangles_are_rectangles():
    inside = np.asarray(random_rectangles(jax.random.key(0), 1.0, (COUNT, SIZE, SIZE, 3)))
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    for axis in (rows, columns):
        assert (np.abs(np.diff(axis.astype(int), axis=1)).sum(axis=1) <= 2).all()


def test_mixup_interpolates_images_and_labels(batch):
    share, others = jnp.linspace(0, 1, COUNT), np.roll(batch.images, 1, axis=0)
    actual = mixup(batch.images, others, share)
    weight = np.asarray(share)[:, None, None, None]
    np.testing.assert_allclose(actual, (1 - weight) * batch.images + weight * others, atol=0.501)
    labels = mixed_labels(jnp.array([0, 1]), jnp.array([2, 1]), jnp.array([0.25, 0.5]), 3)
    np.testing.assert_allclose(labels, [[0.75, 0, 0.25], [0, 1, 0]])


def test_erasing_replaces_one_rectangle_of_some_images(batch):
    black = np.zeros((400, SIZE, SIZE, 1), np.uint8)
    changed = np.asarray(random_erasing(jax.random.key(1), black, 0.25))[..., 0] > 0
    erased = changed.any(axis=(1, 2))
    assert 0.15 < erased.mean() < 0.35
    rows, columns = changed.any(axis=2), changed.any(axis=1)
    area = (rows.sum(axis=1) * columns.sum(axis=1))[erased] / SIZE**2
    assert area.min() >= 0.01
    assert area.max() <= 0.45
    unchanged = random_erasing(jax.random.key(1), batch.images, 0.0)
    np.testing.assert_array_equal(unchanged, batch.images)


def test_all_together_do_not_depend_on_the_number_of_devices(batch):
    actual = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = data_mesh(devices)
        augmented = jax.jit(augmentation(**ALL), out_shardings=batch_sharding(mesh))
        actual.append(jax.tree.map(np.asarray, augmented(jnp.int32(7), place_batch(batch, mesh))))
    assert len(jax.devices()) > 1
    chex.assert_trees_all_equal(*actual)
    images, labels, mask, index = actual[0]
    assert images.dtype == np.uint8
    assert labels.shape == (COUNT, CLASSES)
    assert (images != batch.images).any()
    chex.assert_trees_all_equal((mask, index), (batch.mask, batch.index))


def test_images_depend_on_step_and_seed_only(batch):
    erasing = {"random_erasing": 1.0}
    first = augmentation(**erasing)(3, batch).images
    np.testing.assert_array_equal(first, augmentation(**erasing)(3, batch).images)
    for other in (augmentation(**erasing)(4, batch), augmentation(seed=1, **erasing)(3, batch)):
        assert (np.asarray(other.images) != np.asarray(first)).any()


def test_without_mixing_labels_stay_classes(batch):
    assert augmentation(random_erasing=0.3)(0, batch).labels is batch.labels
    assert augmentation().is_identity
    assert not augmentation(cutmix_alpha=0.1).is_identity
    assert "RandAugment" in augmentation(**ALL).describe()
    assert augmentation().describe() == ""
