"""Clusters of similar classes, and the gate's loss on them."""

import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.models.baselines.class_clusters import (
    balanced_clusters,
    clusters_by_index,
    gate_loss,
    similarity_of_means,
)


def test_balanced_clusters_recover_groups_with_the_same_mean():
    generator = np.random.default_rng(0)
    truth = generator.permutation(np.arange(12) % 3)
    class_means = np.eye(3)[truth] * 4
    labels = np.repeat(np.arange(12), 5)
    features = class_means[labels] + generator.normal(0, 0.3, (60, 3))
    found = balanced_clusters(similarity_of_means(features, labels, 12), 3)
    assert len({(a, b) for a, b in zip(truth, found, strict=True)}) == 3


@pytest.mark.parametrize(("classes", "count"), [(10, 3), (100, 20), (5, 5), (4, 1)])
def test_sizes_of_clusters_differ_by_at_most_one(classes: int, count: int):
    random = np.random.default_rng(1).normal(size=(classes, classes))
    for clusters in (
        clusters_by_index(classes, count),
        balanced_clusters(random + random.T, count),
    ):
        sizes = np.bincount(clusters, minlength=count)
        assert len(sizes) == count and sizes.max() - sizes.min() <= 1


def test_more_clusters_than_classes_are_rejected():
    with pytest.raises(ValueError, match=r"num_clusters.*4.*found 5"):
        clusters_by_index(4, 5)


def test_an_asymmetric_similarity_is_rejected():
    with pytest.raises(ValueError, match=r"similarity.*\(3, 3\)"):
        balanced_clusters(np.arange(9).reshape(3, 3), 2)


def test_a_class_without_an_image_is_rejected():
    with pytest.raises(ValueError, match="class 1"):
        similarity_of_means(np.ones((2, 3)), np.array([0, 2]), 3)


def test_gate_loss_is_the_cross_entropy_of_the_clusters():
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    labels, clusters = jnp.array([3, 0]), np.array([2, 1, 1, 0])
    expected = -(np.log(0.5) + np.log(0.8)) / 2
    assert gate_loss(scores, labels, clusters) == pytest.approx(expected, rel=1e-5)
