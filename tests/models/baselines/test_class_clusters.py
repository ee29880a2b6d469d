"""Clusters of classes, and the gate's loss on them."""

import jax.numpy as jnp
import numpy as np
import pytest

from imta_jax.models.baselines.class_clusters import clusters_by_index, gate_loss


@pytest.mark.parametrize(("classes", "count"), [(10, 3), (100, 20), (5, 5), (4, 1)])
def test_sizes_of_clusters_differ_by_at_most_one(classes: int, count: int):
    sizes = np.bincount(clusters_by_index(classes, count), minlength=count)
    assert len(sizes) == count and sizes.max() - sizes.min() <= 1


def test_more_clusters_than_classes_raise():
    with pytest.raises(ValueError, match=r"num_clusters.*4.*5"):
        clusters_by_index(4, 5)


def test_gate_loss_is_the_cross_entropy_of_the_clusters():
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    labels, clusters = jnp.array([3, 0]), np.array([2, 1, 1, 0])
    expected = -(np.log(0.5) + np.log(0.8)) / 2
    assert gate_loss(scores, labels, clusters) == pytest.approx(expected, rel=1e-5)
