"""Logits of a split from a classifier on all devices, with every image counted exactly once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from imta_jax.config import RunConfig
from imta_jax.data import (
    NO_AUGMENTATION,
    Dataset,
    HostPipeline,
    Preprocessing,
    Shard,
    Split,
    eval_batches,
)
from imta_jax.distributed import (
    batch_sharding,
    data_mesh,
    gather,
    place_batch,
    place_parameters,
    process_shard,
)
from imta_jax.evaluation.predictions import Predictions
from imta_jax.models import MultiExitClassifier, inference_logits
from imta_jax.nn.precision import with_matmul_precision
from imta_jax.options import MatmulPrecision
from imta_jax.runtime.progress_bar import with_progress
from imta_jax.training import evaluation_batch_size, mesh_of
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
    matmul_precision: MatmulPrecision = "default",
) -> Predictions:
    """Runs a classifier in inference mode over a split. The classifier is not modified.

    Args:
      classifier: any multi-exit classifier.
      split: images and labels.
      mean: mean of the pixels per channel, 0..1.
      std: standard deviation of the pixels per channel, 0..1.
      batch_size: number of images per step over all devices, divisible by their number.
      mesh: devices. Parameters are sharded over its second axis. The default is all devices, with
        the parameters on each.
      preprocessing: its evaluation crop is applied to each image. The default is the full image.
      pipeline: producer of the batches (see `data.eval_batches`).
      host: settings of the host's decoding (see `data.eval_batches`).
      matmul_precision: see `nn.precision`.

    Returns:
      Logits and labels in the order of the split.
    """
    mesh = mesh or data_mesh()
    graphdef, state = nnx.split(classifier)
    state = place_parameters(state, mesh)

    step = jit_logits(
        graphdef, state, mean=mean, std=std, mesh=mesh, matmul_precision=matmul_precision
    )
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
        batch_logits, mask, batch_labels = gather((step(state, placed), placed.mask, placed.labels))
        logits.append(batch_logits[mask])  # [N, E, K]
        labels.append(batch_labels[mask])
    return Predictions(
        np.ascontiguousarray(np.concatenate(logits).swapaxes(0, 1)), np.concatenate(labels)
    )


def jit_logits(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    matmul_precision: MatmulPrecision = "default",
) -> jax.stages.Wrapped:
    """Jits the logits of one batch.

    Args:
      graphdef: the classifier's structure; it runs in inference mode.
      state: its variables, whose shardings are kept.
      mean: mean of the pixels per channel, 0..1.
      std: standard deviation of the pixels per channel, 0..1.
      mesh: the devices, over which batches are sharded.
      matmul_precision: see `nn.precision`.

    Returns:
      The jitted function: (state, batch) -> float32 logits [N, E, K].
    """

    def logits_of(state: nnx.State, batch: Batch) -> Float32[Array, "N E K"]:
        images = jnp.asarray(batch.images)
        logits = inference_logits(graphdef, [state], images, mean=mean, std=std, mesh=mesh)
        return jnp.swapaxes(logits, 0, 1)

    over_batch = batch_sharding(mesh)
    shardings = (jax.tree.map(lambda leaf: leaf.sharding, state), over_batch)
    logits_of = with_matmul_precision(logits_of, matmul_precision)
    return jax.jit(logits_of, in_shardings=shardings, out_shardings=over_batch)


def split_predictions(
    config: RunConfig, dataset: Dataset, classifier: MultiExitClassifier, split: str
) -> Predictions:
    """Logits and labels of a split, with the mesh, batch size and pipeline of a run's config.

    Args:
      config: config of the run.
      dataset: dataset of the run.
      classifier: any multi-exit classifier.
      split: "train", "validation" or "test".

    Returns:
      Logits and labels in the order of the split.

    Raises:
      ValueError: a batch size that the devices do not divide.
    """
    mesh = mesh_of(config)
    return collect_predictions(
        classifier,
        dataset.splits[split],
        mean=dataset.mean,
        std=dataset.std,
        batch_size=evaluation_batch_size(config, mesh),
        mesh=mesh,
        preprocessing=dataset.preprocessing,
        pipeline=config.data.pipeline,
        host=HostPipeline.from_config(config.data),
        matmul_precision=config.evaluation.matmul_precision,
    )
