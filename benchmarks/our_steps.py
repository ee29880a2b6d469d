"""Our steps as training compiles them, for `train_step.py`."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import step_contenders
from benchmarks.step_contenders import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Arrays, Case
from configs import cifar10, imagenet
from imta_jax.data.pipeline.on_device import OnDeviceIndices, OnDeviceSplit
from imta_jax.distributed import data_mesh, place_batch, place_once, place_rows
from imta_jax.models import inference_logits, resolve_model_config
from imta_jax.training import phases
from imta_jax.training.objectives import ALL_PARAMETERS, HEAD_PARAMETERS
from imta_jax.training.optimizer import sgd
from imta_jax.training.state import TrainState, create_state, named_arrays
from imta_jax.training.step import on_batches, on_resident, train_step
from imta_jax.types import Batch

Losses = list[float]


def settings(network: str) -> Mapping[str, Any]:
    """The config of the paper's method on a named network."""
    config = (imagenet if network.startswith("imagenet") else cifar10).get_config()
    config.model.preset = network
    return config.to_dict()


def model_fields(network: str) -> dict[str, Any]:
    """A named network's fields, as `plan_network` wants them."""
    return resolve_model_config(settings(network)["model"])


class OurSteps:
    """Steps of one case; each kind is compiled when it is first asked for.

    Args:
      case: see `Case`.
      resident: whether images live on the device, which cuts the batches and does all steps of a
        call in one dispatch; else each batch is handed over, already on the device.
      fields: of config.phase_one, other than the paper's.

    Attributes:
      weights: that phase I starts from, by the names of ours.
    """

    def __init__(self, case: Case, *, resident: bool, **fields: Any):
        self.case, self.resident, self.mesh = case, resident, data_mesh(jax.devices()[:1])
        config, self.facts = settings(case.network), case.facts
        self.config = {**config, "phase_one": {**config["phase_one"], **fields}}
        self.classifier = self._network(phases.new_phase_one(self.config, self.facts))
        self.weights: Arrays = {
            name: np.array(array)
            for name, array in named_arrays(nnx.state(self.classifier)).items()
        }
        images, labels = step_contenders.draw_batches(case)
        index, ones = np.arange(case.batch_size, dtype=np.int32), np.ones(case.batch_size, bool)
        self.batches = [
            place_batch(Batch(i, t, ones, index), self.mesh)
            for i, t in zip(images, labels, strict=True)
        ]
        self.split = place_once(
            OnDeviceSplit(images.reshape(-1, *self.facts.image_shape), labels.ravel()), self.mesh
        )
        self.phases: dict[str, Any] = {}
        self.logits: Any = None

    def _network(self, classifier: nnx.Module) -> nnx.Module:
        if self.case.precision == "bfloat16":
            classifier.compute_dtype = jnp.bfloat16
        return classifier

    def _phase(self, name: str) -> SimpleNamespace:
        """A phase's compiled step and its state."""
        if name not in self.phases:
            classifier, objective, trainable = self.classifier, None, ALL_PARAMETERS
            if name == "phase_one":
                objective = phases.phase_one_objective(self.config)
            else:
                new = phases.new_phase_two(self.config, classifier)
                classifier, trainable = self._network(new), HEAD_PARAMETERS
                objective = phases.phase_two_objective(self.config)
            objective.set_mode(classifier)
            rate, nesterov = (lambda step: LEARNING_RATE), True
            tx = sgd(rate, momentum=MOMENTUM, nesterov=nesterov, weight_decay=WEIGHT_DECAY)
            graphdef, state = create_state(classifier, trainable, tx, self.mesh)
            pixels = step_contenders.pixel_statistics(self.case)
            more = pixels | {"mesh": self.mesh, "parts": self.config[name]["accumulate_parts"]}
            step = train_step(graphdef, objective, trainable, tx, **more)
            compiled = (on_resident if self.resident else on_batches)(step, self.mesh)
            self.phases[name] = SimpleNamespace(step=compiled, state=state)
        return self.phases[name]

    def compiled_memory(self, name: str, steps: int) -> int:
        """Compiles a phase's step before its first call, of so many steps each.

        Returns:
          Bytes that it takes besides what comes in and goes out.
        """
        phase = self._phase(name)
        batch = self.batches[0]
        given = (
            (self.split, place_rows(self._rows(steps), self.mesh)) if self.resident else (batch,)
        )
        phase.step = phase.step.lower(phase.state, *given).compile()
        return int(phase.step.memory_analysis().temp_size_in_bytes)

    def phase_one(self, steps: int) -> Losses:
        """So many steps of phase I; the last one's losses per exit."""
        return self._train(self._phase("phase_one"), steps)

    def phase_two(self, steps: int) -> Losses:
        """So many steps of phase II."""
        return self._train(self._phase("phase_two"), steps)

    def _train(self, phase: SimpleNamespace, steps: int) -> Losses:
        if self.resident:
            rows = place_rows(self._rows(steps), self.mesh)
            phase.state, metrics = phase.step(phase.state, self.split, rows)
            last = jax.tree.map(lambda x: x[-1], metrics)
        else:
            for i in range(steps):
                batch = self.batches[i % len(self.batches)]
                phase.state, last = phase.step(phase.state, batch)
        state: TrainState = jax.block_until_ready(phase.state)
        if int(state.halted_at) >= 0:
            raise RuntimeError(f"training of {self.case.name} is not finite any more")
        return np.asarray(last.loss).tolist()

    def _rows(self, steps: int) -> OnDeviceIndices:
        """The same batches, cut at their corners and not mirrored."""
        size, count = self.case.batch_size, len(self.batches)
        index = np.stack([np.arange(size) + size * (i % count) for i in range(steps)])
        corner = np.zeros((*index.shape, 2), np.int16)
        flip = np.zeros(index.shape, bool)
        return OnDeviceIndices(index.astype(np.int32), corner, flip, np.int32(steps))

    def forward(self, steps: int) -> Losses:
        """So many batches' logits of all exits; the last one's first logits."""
        if self.logits is None:
            self.logits = self._new_forward()
        for i in range(steps):
            last = self.logits(self.batches[i % len(self.batches)].images)
        return np.asarray(jax.block_until_ready(last))[:, 0, 0].tolist()

    def _new_forward(self) -> Any:
        graphdef, state = nnx.split(self.classifier)
        state = place_once(state, self.mesh)
        pixels = step_contenders.pixel_statistics(self.case)

        @jax.jit
        def logits(state: nnx.State, images: jax.Array) -> jax.Array:
            return inference_logits(graphdef, [state], images, **pixels, mesh=self.mesh)

        return lambda images: logits(state, images)
