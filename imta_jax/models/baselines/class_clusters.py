"""Clusters of classes, one per branch of a HydraNet, and the gate's loss on them.

Mullapudi et al. (CVPR 2018) cluster the classes by their mean features into clusters of equal size,
so that every branch is used; `config.model.class_clusters` sets such clusters. By default, a
cluster has consecutive classes. The gate is trained to predict the cluster of an image's class.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from imta_jax.errors import InputError


def clusters_by_index(num_classes: int, num_clusters: int) -> Int[np.ndarray, " K"]:
    """The cluster of each class; a cluster has consecutive classes.

    Raises:
      InputError: more clusters than classes, or none.
    """
    if not 1 <= num_clusters <= num_classes:
        raise InputError(
            f"num_clusters must be 1 to {num_classes}, the number of classes; found {num_clusters}"
        )
    return np.arange(num_classes) * num_clusters // num_classes


def gate_loss(
    scores: Float[Array, "N B"],
    labels: Integer[Array, " N"],
    clusters: Integer[np.ndarray, " K"],
) -> Float[Array, ""]:
    """Mean cross-entropy of a gate's scores against the cluster of each image's class, in nats.

    Args:
      scores: scores of the B clusters.
      labels: classes, from 0.
      clusters: the cluster of each class.
    """
    targets = jnp.asarray(clusters)[labels]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[:, None], axis=-1).mean()
