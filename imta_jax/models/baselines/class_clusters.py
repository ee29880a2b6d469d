"""Partitions of the classes into groups of similar ones, as HydraNet's branches serve them.

Mullapudi et al. (CVPR 2018) cluster the classes by their mean features and keep the clusters of one
size, so that no branch is left without work. Which clusters come out decides what a gate can be
trained towards: `gate_loss` against `balanced_clusters`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from imta_jax.errors import InputError


def clusters_by_index(num_classes: int, num_clusters: int) -> np.ndarray:
    """Runs of neighbouring classes, for when nothing is known of them: cluster [K] of each class.

    Raises:
      ValueError: more clusters than classes, or none.
    """
    _check_counts(num_classes, num_clusters)
    return np.arange(num_classes) * num_clusters // num_classes


def similarity_of_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Cosine similarities [K, K] of the classes' mean features, centred over the classes.

    Args:
      features: [N, F], such as an exit's of training images.
      labels: [N], 0 to K-1, each of them at least once.
      num_classes: K.

    Raises:
      ValueError: a class without an image.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise InputError(f"class {int(counts.argmin())} has no image to take a mean of")
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, labels, features)
    means = sums / counts[:, None]
    means -= means.mean(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means @ means.T


def balanced_clusters(similarity: np.ndarray, num_clusters: int) -> np.ndarray:
    """Clusters of one size (or one apart) with as much similarity inside as exchanges can reach.

    Starts from runs of neighbours and exchanges two classes as long as that adds to the sum of
    similarities within clusters; the best exchange first, so that the result is reproducible.

    Args:
      similarity: [K, K], symmetric; larger is more alike.
      num_clusters: from 1 to K.

    Returns:
      The cluster of each class, [K] integers from 0.

    Raises:
      ValueError: a matrix that is not square and symmetric, or a count that does not fit.
    """
    similarity = np.asarray(similarity, float)
    if similarity.ndim != 2 or not np.allclose(similarity, similarity.T):
        raise InputError(f"similarity must be a symmetric [K, K]; found shape {similarity.shape}")
    clusters = clusters_by_index(len(similarity), num_clusters)
    off_diagonal = similarity - np.diag(np.diag(similarity))
    while True:
        gain = _gain_of_exchanges(off_diagonal, clusters)
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        if gain[a, b] <= 1e-9:
            return clusters
        clusters[[a, b]] = clusters[[b, a]]


def _gain_of_exchanges(similarity: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """What exchanging classes a and b adds to the similarity within clusters, [K, K]."""
    members = np.eye(clusters.max() + 1)[clusters]  # [K, C]
    towards = similarity @ members  # of a class to the members of every cluster
    own = towards[np.arange(len(clusters)), clusters]
    moved = towards[:, clusters]  # of class a to the cluster of class b
    gain = moved + moved.T - own[:, None] - own[None] - 2 * similarity
    return np.where(clusters[:, None] == clusters[None], 0.0, gain)


def gate_loss(scores: jax.Array, labels: jax.Array, clusters: np.ndarray) -> jax.Array:
    """Mean cross-entropy, in nats, of a gate's scores against the clusters of the classes.

    Args:
      scores: [N, B], B clusters.
      labels: [N] classes.
      clusters: [K], the cluster of each class.
    """
    targets = jnp.asarray(clusters)[labels]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[:, None], axis=-1).mean()


def _check_counts(num_classes: int, num_clusters: int) -> None:
    if not 1 <= num_clusters <= num_classes:
        raise InputError(f"clusters must number 1 to {num_classes} (classes); found {num_clusters}")
