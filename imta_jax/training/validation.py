"""Validation during training: mean loss and top-1 accuracy per exit."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from imta_jax.config import RunConfig
from imta_jax.data import Dataset, HostPipeline, Shard, eval_batches
from imta_jax.distributed import check_batch_size, place_batch, process_shard
from imta_jax.training.averaging import evaluated_parts
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.state import TrainState
from imta_jax.training.step import jit_eval_step

Validate = Callable[[TrainState], ExitMetrics]


def make_validation(
    config: RunConfig, dataset: Dataset, graphdef: nnx.GraphDef, mesh: Mesh
) -> Validate:
    """Returns a function that evaluates a state, or its average, on the validation images.

    Args:
      config: the run's config.
      dataset: its validation split is read.
      graphdef: the classifier's structure.
      mesh: the devices.

    Returns:
      state -> loss (nats) and top-1 accuracy (percent) per exit, over all validation images.
    """
    precision = config.evaluation.matmul_precision
    pixels = {"mean": dataset.mean, "std": dataset.std}
    step = jit_eval_step(graphdef, **pixels, mesh=mesh, matmul_precision=precision)
    batch_size = evaluation_batch_size(config, mesh)
    host = HostPipeline.from_config(config.data)

    def validate(state: TrainState) -> ExitMetrics:
        batches = eval_batches(
            dataset.splits["validation"],
            dataset.preprocessing,
            batch_size,
            shard=Shard(*process_shard()),
            pipeline=config.data.pipeline,
            host=host,
        )
        parts = evaluated_parts(state)
        sums = [step(*parts, place_batch(b, mesh)) for b in batches]
        total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *jax.device_get(sums))
        return ExitMetrics(total["loss"] / total["count"], 100 * total["correct"] / total["count"])

    return validate


def evaluation_batch_size(config: RunConfig, mesh: Mesh) -> int:
    """`config.evaluation.batch_size`.

    Raises:
      InputError: the devices do not divide it.
    """
    batch_size = config.evaluation.batch_size
    check_batch_size(batch_size, mesh, "config.evaluation.batch_size")
    return batch_size
