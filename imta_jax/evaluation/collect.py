"""Logits of a split, every image exactly once, from a classifier on all devices."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from imta_jax.data import NO_AUGMENTATION, HostPipeline, Preprocessing, Shard, Split, eval_batches
from imta_jax.distributed import (
    data_mesh,
    gather,
    place_batch,
    place_replicated,
    process_shard,
    replicated,
    split_over_batch,
)
from imta_jax.evaluation.predictions import Predictions
from imta_jax.models import MultiExitClassifier, inference_logits
from imta_jax.runtime.progress_bar import with_progress
from imta_jax.types import Batch


def collect_predictions(
    classifier: MultiExitClassifier,
    split: Split,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    mesh: Mesh | None = None,
    preprocessing: Preprocessing = NO_AUGMENTATION,
    pipeline: str = "auto",
    host: HostPipeline | None = None,
) -> Predictions:
    """Runs a classifier in inference mode over a split; the classifier itself is left as it is.

    Args:
      classifier: any multi-exit classifier.
      split: images and labels.
      mean: of the pixels per channel, 0..1.
      std: likewise.
      batch_size: global; the devices must divide it.
      mesh: default, all devices.
      preprocessing: what is shown of each image; default, all of an array.
      pipeline: see `data.eval_batches`.
      host: likewise.

    Returns:
      Logits [E, N, K] float32 and labels [N], in the order of the split.
    """
    mesh = mesh or data_mesh()
    graphdef, state = nnx.split(classifier)

    def logits_of(state: nnx.State, batch: Batch) -> jax.Array:
        logits = inference_logits(graphdef, [state], batch.images, mean=mean, std=std, mesh=mesh)
        return jnp.swapaxes(logits, 0, 1)

    whole, by_row = replicated(mesh), split_over_batch(mesh)
    step = jax.jit(logits_of, in_shardings=(whole, by_row), out_shardings=by_row)
    state = place_replicated(state, mesh)
    logits, labels = [], []
    batches = eval_batches(
        split,
        preprocessing,
        batch_size,
        shard=Shard(*process_shard()),
        pipeline=pipeline,
        host=host,
    )
    total = -(-len(split) // batch_size)
    for batch in with_progress(batches, total=total, description="evaluate"):
        placed = place_batch(batch, mesh)
        rows, mask, classes = gather((step(state, placed), placed.mask, placed.labels))
        logits.append(rows[mask])  # [N, E, K]
        labels.append(classes[mask])
    return Predictions(
        np.ascontiguousarray(np.concatenate(logits).swapaxes(0, 1)), np.concatenate(labels)
    )
