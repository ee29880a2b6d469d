"""Phase I with learned sample weights (L2W-DEN); see `techniques.sample_weights`.

A batch has two halves A and B. For A, with the weights w(phi) of a network with parameters phi:

1. A virtual step of the phase's optimizer on the weighted loss of A gives theta'(phi).
2. Adam takes a step on phi against the meta loss of B at theta'(phi).
3. The new weights define the loss of A.

Then A and B change places. The authors take a step on theta after each half. Here one step on both
halves follows, with the same number of steps, batch size and schedule as without weights. Batch
normalization sees one half at a time.

The gradient of A is linear in the weights, so the derivative of step 1 needs no second derivative
of the network. A step has about three times the operations of a step without weights. Per half:
one forward and two backward passes on A, the derivative of a backward pass, and a forward and a
backward pass on B.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from imta_jax.models import MultiExitClassifier
from imta_jax.nn.pixels import normalize
from imta_jax.techniques.sample_weights import (
    LEARNING_RATE,
    WeightNetwork,
    leaving_counts,
    meta_loss,
    new_weight_network,
    sample_weights,
)
from imta_jax.training.objectives import ExitMetrics, PhaseOneObjective, exit_metrics
from imta_jax.training.state import TrainState
from imta_jax.training.step import TrainStep, advance_if_finite, apply_in_training
from imta_jax.types import Batch

_OPTIMIZER = optax.adam(LEARNING_RATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedWeightsObjective(PhaseOneObjective):
    """The sum over exits of the mean weighted cross-entropy.

    Called as an objective it has the weights 1; `LearnedWeightsStep` adds the weights.

    Attributes:
      seed: seed of the network that predicts weights.
    """

    section: ClassVar[str] = "LearnedWeightsObjective"

    seed: int = 0

    def new_state(self, classifier: MultiExitClassifier) -> dict[str, Any]:
        """State in addition to the classifier: the weight network and its optimizer."""
        network = new_weight_network(classifier.num_exits, self.seed)
        return {"network": network, "optimizer": _OPTIMIZER.init(network)}

    def make_step(
        self,
        graphdef: nnx.GraphDef,
        trainable: Any,
        tx: optax.GradientTransformation,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        mesh: Mesh,
    ) -> TrainStep:
        """See `StatefulObjective`."""
        step = LearnedWeightsStep(
            graphdef=graphdef,
            objective=self,
            trainable=trainable,
            tx=tx,
            mean=mean,
            std=std,
            mesh=mesh,
        )
        return step.advance


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LearnedWeightsStep:
    """One training step with learned sample weights; `advance` is to be compiled.

    Attributes:
      graphdef, trainable, tx, mean, std, mesh: see `step.train_step`.
      objective: its logits are used.
    """

    graphdef: nnx.GraphDef
    objective: LearnedWeightsObjective
    trainable: Any
    tx: optax.GradientTransformation
    mean: Sequence[float]
    std: Sequence[float]
    mesh: Mesh

    def advance(self, state: TrainState, batch: Batch) -> tuple[TrainState, ExitMetrics]:
        """Maps a state and a batch to the next state and the metrics."""
        # A half takes every second example, so that no example moves between devices.
        halves = tuple(
            x.reshape(-1, 2, *x.shape[1:]).swapaxes(0, 1) for x in (batch.images, batch.labels)
        )
        swapped = tuple(x[::-1] for x in halves)
        (rest, extra), results = jax.lax.scan(
            lambda carry, pair: self._half(state, carry, *pair),
            (state.rest, state.extra),
            (halves, swapped),
        )
        gradient, loss, metrics = jax.tree.map(lambda x: x.mean(axis=0), results)
        params, opt_state = self._optimizer_step(state, gradient)
        changed = {"trainable": params, "rest": rest, "opt_state": opt_state, "extra": extra}
        advanced = dataclasses.replace(state, step=state.step + 1, **changed)
        return advance_if_finite(state, advanced, (loss, gradient, extra["network"])), metrics

    def _half(self, state: TrainState, carry: Any, half: Any, meta: Any) -> tuple[Any, Any]:
        """Trains the weight network for one half, with the other half as meta images.

        Returns:
          ((rest, weight network and its optimizer), (gradient, loss, metrics)).
        """
        rest, extra = carry
        losses, pullback, (metrics, new_rest) = jax.vjp(
            lambda params: self._losses(params, rest, *half), state.trainable.unpack(), has_aux=True
        )

        def gradient(network: WeightNetwork) -> nnx.State:
            (gradients,) = pullback(sample_weights(network, losses) / losses.shape[1])
            return gradients

        def loss_after_virtual_step(network: WeightNetwork) -> Float[Array, ""]:
            params, _ = self._optimizer_step(state, gradient(network))
            images, labels = meta
            logits, _ = self._logits(params.unpack(), rest, images)
            return meta_loss(logits, labels, leaving_counts(len(logits), len(labels)))

        to_network = jax.grad(loss_after_virtual_step)(extra["network"])
        updates, optimizer = _OPTIMIZER.update(to_network, extra["optimizer"])
        network: Any = optax.apply_updates(extra["network"], updates)
        loss = (sample_weights(network, losses) * losses).mean(axis=1).sum()
        extra = {"network": network, "optimizer": optimizer}
        return (new_rest, extra), (gradient(network), loss, metrics)

    def _optimizer_step(self, state: TrainState, gradient: nnx.State) -> tuple[Any, Any]:
        """Packed parameters and optimizer state after a step."""
        packed: Any = state.trainable
        updates, opt_state = self.tx.update(packed.packing.pack(gradient), state.opt_state, packed)
        return optax.apply_updates(packed, updates), opt_state

    def _losses(
        self,
        params: nnx.State,
        rest: nnx.State,
        images: UInt8[Array, "N H W C"],
        labels: Int[Array, " N"],
    ) -> tuple[Float[Array, "E N"], tuple[ExitMetrics, nnx.State]]:
        """Cross-entropy of each image at each exit, with metrics and batch statistics."""
        logits, rest = self._logits(params, rest, images)
        labels_per_exit = jnp.broadcast_to(labels, logits.shape[:-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels_per_exit)
        return losses, (exit_metrics(logits, labels), rest)

    def _logits(
        self, params: nnx.State, rest: nnx.State, images: UInt8[Array, "N H W C"]
    ) -> tuple[Float[Array, "E N K"], nnx.State]:
        (logits, _), rest = apply_in_training(
            lambda network: self.objective.outputs(network, normalize(images, self.mean, self.std)),
            (self.graphdef, params, rest),
            self.trainable,
            self.mesh,
        )
        return logits, rest
