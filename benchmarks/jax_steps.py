"""Our training steps and forward pass, compiled as in training, for the step benchmarks."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import cases
from benchmarks.cases import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Arrays,
    Case,
    Losses,
    draw_batches,
    pixel_statistics,
)
from imta_jax.data.pipeline.on_device import OnDeviceIndices, OnDeviceSplit
from imta_jax.distributed import data_mesh, place_batch, place_indices, replicate_host
from imta_jax.models import inference_logits
from imta_jax.training.optimizer import sgd
from imta_jax.training.setup import assemble_phase, new_phase_one, phase_parts
from imta_jax.training.state import TrainState, named_arrays
from imta_jax.training.step import jit_batch_step, jit_on_device_step
from imta_jax.types import Batch


class JaxSteps:
    """The steps of one case; each kind is compiled at its first call.

    Args:
      case: what is computed.
      on_device: True keeps the images on the device, selects the batches there and does all steps
        of a call in one dispatch. False passes batches that are already on the device.
      fields: overrides of `config.phase_one`.

    Attributes:
      weights: initial arrays of phase I, by name.
    """

    def __init__(self, case: Case, *, on_device: bool, **fields: Any):
        self.case, self.on_device, self.mesh = case, on_device, data_mesh(jax.devices()[:1])
        config, info = cases.case_config(case.network), case.dataset_info
        dtype = "bfloat16" if case.precision == "bfloat16" else "float32"
        self.config = dataclasses.replace(
            config,
            phase_one=dataclasses.replace(config.phase_one, compute_dtype=dtype, **fields),
            phase_two=dataclasses.replace(config.phase_two, compute_dtype=dtype),
        )
        self.classifier = new_phase_one(self.config, info)
        self.classifier.compute_dtype = jnp.dtype(dtype)
        self.weights: Arrays = {
            name: np.array(array)
            for name, array in named_arrays(nnx.state(self.classifier)).items()
        }
        images, labels = draw_batches(case)
        index, ones = np.arange(case.batch_size, dtype=np.int32), np.ones(case.batch_size, bool)
        self.batches = [
            place_batch(Batch(i, t, ones, index), self.mesh)
            for i, t in zip(images, labels, strict=True)
        ]
        self.split = replicate_host(
            OnDeviceSplit.from_host(images.reshape(-1, *info.image_shape), labels.ravel()),
            self.mesh,
        )
        self.phases: dict[str, Any] = {}
        self.logits: Any = None

    def _phase(self, name: str) -> SimpleNamespace:
        """The compiled step of a phase and its state."""
        if name not in self.phases:
            optimizer = sgd(
                lambda step: LEARNING_RATE,
                momentum=MOMENTUM,
                nesterov=True,
                weight_decay=WEIGHT_DECAY,
            )
            pixels = pixel_statistics(self.case)
            phase = assemble_phase(
                name,
                self.config,
                *phase_parts(name, self.config, self.classifier),
                optimizer,
                **pixels,
                mesh=self.mesh,
            )
            state = phase.new_state()
            if self.on_device:
                packed = phase.packed_statistics(state)
                compiled: Any = jit_on_device_step(phase.step, self.mesh, packed_statistics=packed)
            else:
                compiled = jit_batch_step(phase.step, self.mesh)
            self.phases[name] = SimpleNamespace(step=compiled, state=state)
        return self.phases[name]

    def compiled_memory(self, name: str, steps: int) -> int:
        """Compiles the step of a phase for calls of `steps` steps; call it before the first step.

        Returns:
          Bytes of temporary memory of the program, without its arguments and results.
        """
        phase = self._phase(name)
        batch = self.batches[0]
        inputs = (
            (self.split, place_indices(self._indices(steps), self.mesh))
            if self.on_device
            else (batch,)
        )
        phase.step = phase.step.lower(phase.state, *inputs).compile()
        return int(phase.step.memory_analysis().temp_size_in_bytes)

    def phase_one(self, steps: int) -> Losses:
        """Takes training steps of phase I; returns the last losses per exit."""
        return self._train(self._phase("phase_one"), steps)

    def phase_two(self, steps: int) -> Losses:
        """Takes training steps of phase II; returns the last losses per exit."""
        return self._train(self._phase("phase_two"), steps)

    def _train(self, phase: SimpleNamespace, steps: int) -> Losses:
        if self.on_device:
            indices = place_indices(self._indices(steps), self.mesh)
            phase.state, metrics = phase.step(phase.state, self.split, indices)
            last = jax.tree.map(lambda x: x[-1], metrics)
        else:
            for i in range(steps):
                batch = self.batches[i % len(self.batches)]
                phase.state, last = phase.step(phase.state, batch)
        state: TrainState = jax.block_until_ready(phase.state)
        if int(state.halted_at) >= 0:
            raise RuntimeError(f"{self.case.name}: the loss is not finite")
        return np.asarray(last.loss).tolist()

    def _indices(self, steps: int) -> OnDeviceIndices:
        """Indices of the same batches, with crops at offset 0 and without flips."""
        size, count = self.case.batch_size, len(self.batches)
        index = np.stack([np.arange(size) + size * (i % count) for i in range(steps)])
        corner = np.zeros((*index.shape, 2), np.int16)
        flip = np.zeros(index.shape, bool)
        return OnDeviceIndices(index.astype(np.int32), corner, flip, np.int32(steps))

    def forward(self, steps: int) -> Losses:
        """Computes logits of all exits; returns the first logit per exit of the last batch."""
        if self.logits is None:
            self.logits = self._new_forward()
        for i in range(steps):
            last = self.logits(self.batches[i % len(self.batches)].images)
        return np.asarray(jax.block_until_ready(last))[:, 0, 0].tolist()

    def _new_forward(self) -> Any:
        graphdef, state = nnx.split(self.classifier)
        state = replicate_host(state, self.mesh)
        pixels = pixel_statistics(self.case)

        @jax.jit
        def logits(state: nnx.State, images: jax.Array) -> jax.Array:
            return inference_logits(graphdef, [state], images, **pixels, mesh=self.mesh)

        return lambda images: logits(state, images)
