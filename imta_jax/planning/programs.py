"""The programs of a run, lowered for devices that need not be attached.

They are built by the same functions as in a run: `training.setup`, `training.step` and
`evaluation.collect`. Arrays are replaced by shapes with shardings.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from imta_jax.config import RunConfig
from imta_jax.data import steps_per_epoch
from imta_jax.data.pipeline.on_device import (
    OnDeviceIndices,
    OnDeviceSplit,
    stored_bytes,
)
from imta_jax.distributed import (
    batch_sharding,
    check_batch_size,
    parameter_sharding,
    replicated,
    stacked_batch_sharding,
)
from imta_jax.evaluation.collect import jit_logits
from imta_jax.models.costs import exit_costs
from imta_jax.planning.data_description import DataDescription
from imta_jax.training.abstract_phase import abstract_phase, abstract_state
from imta_jax.training.batch_statistics import (
    batch_parts,
    check_statistics_groups,
)
from imta_jax.training.checks import check_field_values
from imta_jax.training.feed import steps_per_dispatch
from imta_jax.training.loading import last_phase
from imta_jax.training.optimizer import phase_optimizer
from imta_jax.training.schedules import epochs_schedule
from imta_jax.training.setup import Phase, phase_settings
from imta_jax.training.state import TrainState
from imta_jax.training.step import jit_batch_step, jit_on_device_step
from imta_jax.training.validation import evaluation_batch_size
from imta_jax.types import Batch

# Multiply-adds of a step relative to a forward pass: the backward pass of a convolution is two
# products of the same size. Phase II computes gradients of the heads only.
_PASSES = {"phase_one": 3, "phase_two": 1, "evaluation": 1}
# Sums per channel: two of the forward pass and two of the backward pass; with groups of images
# within chips, the running mean and variance.
_SUMS_PER_NORMALIZATION, _SUMS_WITHIN_CHIPS = 4, 2


@dataclasses.dataclass(frozen=True)
class ProgramInfo:
    """The description of a program before it is compiled.

    Attributes:
      name: "phase_one", "phase_two" or "evaluation".
      batch_size: images per step over all chips.
      chips: number of chips.
      steps: training steps in one call of the program.
      matrix_operations: operations of convolutions and products per step and chip.
      gradient_bytes: bytes of the gradients of the trained parameters.
      statistics_bytes: bytes of the sums that batch normalization exchanges between chips.
      image_bytes: bytes of the images that stay on each chip.
    """

    name: str
    batch_size: int
    chips: int
    steps: int
    matrix_operations: float
    gradient_bytes: int
    statistics_bytes: int
    image_bytes: int

    @property
    def images_per_chip(self) -> int:
        """Images of a step on one chip."""
        return self.batch_size // self.chips


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that can be lowered.

    Attributes:
      info: its description.
      lower: traces and lowers it.
    """

    info: ProgramInfo
    lower: Callable[[], jax.stages.Lowered]


def program_names(config: RunConfig) -> list[str]:
    """The programs of a run: its phases and the evaluation."""
    phases = ["phase_one"] + ["phase_two"] * (config.phase_two.total_epochs > 0)
    return [*phases, "evaluation"]


def build_program(
    name: str, config: RunConfig, data: DataDescription, mesh: Mesh, *, on_device_data: bool
) -> Program:
    """Builds a program of a run.

    Args:
      name: one of `program_names`.
      config: the run's config.
      data: sizes of its data.
      mesh: the devices; they need not be attached.
      on_device_data: whether training images are stored on the devices.

    Raises:
      InputError: a value is invalid, or the chips do not divide a batch.
    """
    check_field_values(config)
    if name == "evaluation":
        return _evaluation(config, data, mesh)
    settings = phase_settings(config, name)
    field = f"config.{name}.batch_size"
    check_batch_size(settings.batch_size, mesh, field, batch_parts(settings))
    check_statistics_groups(settings, mesh.size)
    phase = _phase(name, config, data, mesh)
    state = abstract_state(phase)
    if on_device_data and data.are_arrays:
        return _on_device_step(name, config, data, phase, state)
    step = jit_batch_step(phase.step, mesh, state)
    batch = _batch(settings.batch_size, data, mesh)
    info = _info(name, phase, settings.batch_size)
    return Program(info, lambda: step.lower(state, batch))


def _phase(name: str, config: RunConfig, data: DataDescription, mesh: Mesh) -> Phase:
    settings = phase_settings(config, name)
    field = f"config.{name}.batch_size"
    steps = steps_per_epoch(data.examples["train"], settings.batch_size, field)
    # Phase I trains the last exit alone first, if at all, with another program.
    first = config.phase_one.last_exit_epochs if name == "phase_one" else 0
    epochs = range(first, settings.total_epochs)
    optimizer = phase_optimizer(settings, epochs_schedule(settings, epochs, steps))
    return abstract_phase(
        name, config, data.info, optimizer, mean=data.mean, std=data.std, mesh=mesh
    )


def _on_device_step(
    name: str, config: RunConfig, data: DataDescription, phase: Phase, state: TrainState
) -> Program:
    """The steps of one dispatch on images that are on the devices."""
    mesh, size = phase.mesh, phase_settings(config, name).batch_size
    steps = steps_per_dispatch(config, mesh)
    split = on_device_split(data, mesh)
    indices = _shape(stacked_batch_sharding(mesh))
    arguments = OnDeviceIndices(
        indices((steps, size), jnp.int32),
        indices((steps, size, 2), jnp.int16),
        indices((steps, size), jnp.bool_),
        _shape(replicated(mesh))((), jnp.int32),
    )
    packed = phase.packed_statistics(state)
    step = jit_on_device_step(phase.step, mesh, state, packed_statistics=packed)
    image_bytes = stored_bytes(data.examples["train"], data.info.image_shape)
    info = dataclasses.replace(_info(name, phase, size), steps=steps, image_bytes=image_bytes)
    return Program(info, lambda: step.lower(state, split, arguments))


def on_device_split(data: DataDescription, mesh: Mesh) -> OnDeviceSplit:
    """The shapes of the training images and labels on every device."""
    replicated_shape, examples = _shape(replicated(mesh)), data.examples["train"]
    images = replicated_shape((examples, math.prod(data.info.image_shape)), jnp.uint8)
    return OnDeviceSplit(images, replicated_shape((examples,), jnp.int32), data.info.image_shape)


def _evaluation(config: RunConfig, data: DataDescription, mesh: Mesh) -> Program:
    """The logits of one batch of the network that the last phase trains."""
    size, phase = (
        evaluation_batch_size(config, mesh),
        _phase(last_phase(config), config, data, mesh),
    )
    graphdef, variables = nnx.split(phase.classifier)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=parameter_sharding(mesh, x.shape)
        ),
        variables,
    )
    step = jit_logits(
        graphdef,
        state,
        mean=data.mean,
        std=data.std,
        mesh=mesh,
        matmul_precision=config.evaluation.matmul_precision,
    )
    batch = _batch(size, data, mesh)
    info = dataclasses.replace(
        _info("evaluation", phase, size), gradient_bytes=0, statistics_bytes=0
    )
    return Program(info, lambda: step.lower(state, batch))


def _batch(size: int, data: DataDescription, mesh: Mesh) -> Batch:
    array = _shape(batch_sharding(mesh))
    return Batch(
        array((size, *data.info.image_shape), jnp.uint8),
        array((size,), jnp.int32),
        array((size,), jnp.bool_),
        array((size,), jnp.int32),
    )


def _shape(sharding: Any) -> Callable[..., Any]:
    return lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _info(name: str, phase: Phase, batch_size: int) -> ProgramInfo:
    classifier, chips = phase.classifier, phase.mesh.size
    macs = int(exit_costs(classifier).macs[-1])
    trained = jax.tree.leaves(nnx.state(classifier, phase.trainable))
    norms = [m for _, m in nnx.iter_graph(classifier) if hasattr(m, "use_running_average")]
    sums = sum(
        math.prod(m.mean.shape) * _sums(m, chips) for m in norms if not m.use_running_average
    )
    return ProgramInfo(
        name=name,
        batch_size=batch_size,
        chips=chips,
        steps=1,
        matrix_operations=2 * macs * _PASSES[name] * batch_size / chips,
        gradient_bytes=sum(math.prod(x.shape) * x.dtype.itemsize for x in trained),
        statistics_bytes=4 * sums,
        image_bytes=0,
    )


def _sums(norm: Any, chips: int) -> int:
    """Values per channel that the chips exchange for a normalization."""
    groups = getattr(norm, "statistics_groups", 1)  # A layer of Flax has one group.
    return _SUMS_WITHIN_CHIPS if groups > 1 and groups % chips == 0 else _SUMS_PER_NORMALIZATION
