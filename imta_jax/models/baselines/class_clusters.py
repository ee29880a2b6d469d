"""Clusters of similar classes, one per branch of a HydraNet, and the gate's loss on them.

Mullapudi et al. (CVPR 2018) cluster the classes by their mean features into clusters of equal size,
so that every branch is used. The gate is trained to predict the cluster of an image's class.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from imta_jax.errors import InputError


def clusters_by_index(num_classes: int, num_clusters: int) -> Int[np.ndarray, " K"]:
    """The cluster of each class; clusters are runs of consecutive classes.

    Raises:
      InputError: More clusters than classes, or none.
    """
    _check_counts(num_classes, num_clusters)
    return np.arange(num_classes) * num_clusters // num_classes


def similarity_of_means(
    features: Float[np.ndarray, "N F"], labels: Integer[np.ndarray, " N"], num_classes: int
) -> Float[np.ndarray, "K K"]:
    """Cosine similarities of the classes' mean features, centered over the classes.

    Args:
      features: For example an exit's features of training images.
      labels: From 0 to K-1; every class occurs.
      num_classes: Number of classes K.

    Raises:
      InputError: A class without an image.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise InputError(f"class {int(counts.argmin())} has no image")
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, labels, features)
    means = sums / counts[:, None]
    means -= means.mean(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means @ means.T


def balanced_clusters(similarity: np.ndarray, num_clusters: int) -> Int[np.ndarray, " K"]:
    """Clusters whose sizes differ by at most one, with a locally maximal similarity within.

    Starts from clusters of consecutive classes. Swaps the two classes that increase the sum of
    similarities within clusters most, until no swap increases it. Deterministic.

    Args:
      similarity: [K, K], symmetric; larger is more similar.
      num_clusters: From 1 to K.

    Returns:
      The cluster of each class, from 0.

    Raises:
      InputError: A matrix that is not square and symmetric, or a count out of range.
    """
    similarity = np.asarray(similarity, float)
    if similarity.ndim != 2 or not np.allclose(similarity, similarity.T):
        raise InputError(f"similarity must be a symmetric [K, K]; found shape {similarity.shape}")
    clusters = clusters_by_index(len(similarity), num_clusters)
    off_diagonal = similarity - np.diag(np.diag(similarity))
    while True:
        gain = _gain_of_swaps(off_diagonal, clusters)
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        if gain[a, b] <= 1e-9:
            return clusters
        clusters[[a, b]] = clusters[[b, a]]


def _gain_of_swaps(
    similarity: Float[np.ndarray, "K K"], clusters: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "K K"]:
    """Change of the similarity within clusters if classes a and b are swapped."""
    members = np.eye(clusters.max() + 1)[clusters]  # [K, C]
    to_cluster = similarity @ members  # of each class to each cluster, [K, C]
    own = to_cluster[np.arange(len(clusters)), clusters]
    moved = to_cluster[:, clusters]  # of class a to the cluster of class b
    gain = moved + moved.T - own[:, None] - own[None] - 2 * similarity
    return np.where(clusters[:, None] == clusters[None], 0.0, gain)


def gate_loss(
    scores: Float[Array, "N B"],
    labels: Integer[Array, " N"],
    clusters: Integer[np.ndarray, " K"],
) -> Float[Array, ""]:
    """Mean cross-entropy of a gate's scores against the cluster of each image's class, in nats.

    Args:
      scores: Of B clusters.
      labels: Classes, from 0.
      clusters: The cluster of each class.
    """
    targets = jnp.asarray(clusters)[labels]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[:, None], axis=-1).mean()


def _check_counts(num_classes: int, num_clusters: int) -> None:
    if not 1 <= num_clusters <= num_classes:
        raise InputError(
            f"num_clusters must be 1 to {num_classes}, the number of classes; found {num_clusters}"
        )
