"""The losses of the two phases: they map a classifier and a batch to a loss and metrics per exit.

`loss_objective` makes an objective from a loss function of logits and labels.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num

from imta_jax import options
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.config_fields import Section, number
from imta_jax.techniques import FeatureDetachment, cross_entropy, one_for_all_loss
from imta_jax.techniques.cross_entropy import add_label_smoothing
from imta_jax.types import Batch, Labels


class ExitMetrics(NamedTuple):
    """Metrics per exit over one batch.

    Attributes:
      loss: mean cross-entropy in nats, without label smoothing. Of mixed images, against the mixed
        labels.
      top1: top-1 accuracy in percent. Of a mixed image, the class with the largest share counts.
    """

    loss: Float[Array | np.ndarray, "*S E"]
    top1: Float[Array | np.ndarray, "*S E"]


class Objective(Protocol):
    """A loss."""

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Sets train or eval mode of the classifier's modules, before it is split for the step."""

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Labels,
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """Maps normalized images and labels to the loss and metrics.

        Args:
          classifier: classifier in the modes of `set_mode`.
          images: normalized.
          labels: classes, from 0; with mixup or cutmix, the probability of each class.
        """
        ...


@runtime_checkable
class StatefulObjective(Objective, Protocol):
    """A loss with state of its own, which `TrainState.extra` holds, and its own training step."""

    def new_state(self, classifier: MultiExitClassifier) -> Any:
        """A pytree of arrays."""

    def make_step(
        self,
        graphdef: nnx.GraphDef,
        trainable: Any,
        tx: optax.GradientTransformation,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        mesh: Mesh,
    ) -> Callable[[Any, Batch], tuple[Any, ExitMetrics]]:
        """The function from a state and a batch to the next state and the metrics.

        Args are those of `step.train_step`.
        """
        ...


def exit_metrics(logits: Float[Array, "E N K"], labels: Labels) -> ExitMetrics:
    """Cross-entropy and top-1 accuracy per exit."""
    dominant = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    correct = logits.argmax(axis=-1) == dominant[None]
    return ExitMetrics(cross_entropy(logits, labels), 100 * correct.mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class PhaseOneObjective(Section):
    """Cross-entropy of all exits (Eq. 1 with weights 1), with gradient equilibrium.

    Attributes:
      equilibrium: feature maps that gradient equilibrium rescales; see `options`.
      exit_losses: "sum" or "mean" of the exits' losses.
      detachment: gradients of feature maps that stop; see `techniques.detached_features`.
      rematerialize, rematerialize_layers: see `MultiExitClassifier.features`.
      label_smoothing: epsilon of `techniques.cross_entropy`.

    Raises:
      InputError: an unknown name, or a value out of range.
    """

    section: ClassVar[str] = "PhaseOneObjective"

    equilibrium: options.EquilibriumMode
    exit_losses: options.ExitLosses = "sum"
    detachment: FeatureDetachment = dataclasses.field(default_factory=FeatureDetachment)
    rematerialize: bool = False
    rematerialize_layers: bool = False
    label_smoothing: float = number(0.0, at_least=0, below=1)

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Train mode everywhere."""
        classifier.train()

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Labels,
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`."""
        logits, _ = self.outputs(classifier, images)
        metrics = exit_metrics(logits, labels)
        losses = add_label_smoothing(metrics.loss, logits, self.label_smoothing)
        return losses.sum() if self.exit_losses == "sum" else losses.mean(), metrics

    def outputs(
        self, classifier: MultiExitClassifier, images: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "E N K"], Float[Array, "N K"]]:
        """Logits of all exits, with gradient equilibrium, and of the teacher, the last exit."""
        features = classifier.features(
            images,
            self.equilibrium,
            detachment=self.detachment,
            rematerialize=self.rematerialize,
            rematerialize_layers=self.rematerialize_layers,
        )
        logits = classifier.logits(features)
        return logits, logits[-1]


def freeze_backbone(classifier: MultiExitClassifier) -> None:
    """Freezes the running statistics of the backbone's BatchNorms."""
    backbone: Any = classifier.backbone
    backbone.eval()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseTwoObjective(Section):
    """One-for-all distillation (Eq. 7-8) of collaborative heads on a fixed backbone.

    Attributes:
      alpha, temperature, reduction, temperature_squared, last_exit, label_smoothing: see
        `techniques.one_for_all_loss`.
      teacher: "own_last_exit" or "phase_one_last_exit".
      backbone_statistics: BatchNorm statistics of the backbone, "frozen" or "moving".

    Raises:
      InputError: an unknown name, alpha outside 0 to 1, or a temperature that is not above 0.
    """

    section: ClassVar[str] = "PhaseTwoObjective"

    alpha: float = number(at_least=0, at_most=1)
    temperature: float = number(above=0)
    reduction: options.Reduction
    temperature_squared: bool
    last_exit: options.LastExitLoss
    teacher: options.Teacher
    backbone_statistics: options.BackboneStatistics
    label_smoothing: float = number(0.0, at_least=0, below=1)

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Train mode of the heads; the backbone's statistics follow `backbone_statistics`."""
        classifier.train()
        if self.backbone_statistics == "frozen":
            freeze_backbone(classifier)

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Labels,
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`."""
        logits, teacher = self.outputs(classifier, images)
        loss = self.loss(logits, labels, teacher, self.alpha, self.temperature)
        return loss, exit_metrics(logits, labels)

    def outputs(
        self, classifier: MultiExitClassifier, images: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "E N K"], Float[Array, "N K"]]:
        """Logits of all exits and of the teacher; the gradient stops at the features."""
        features = jax.lax.stop_gradient(classifier.features(images))
        logits = classifier.logits(features)
        if self.teacher == "own_last_exit":
            return logits, logits[-1]
        return logits, classifier.phase_one_logits(features)

    def loss(
        self,
        logits: Float[Array, "E N K"],
        labels: Labels,
        teacher: Float[Array, "N K"],
        alpha: float | jax.Array,
        temperature: float | jax.Array,
    ) -> Float[Array, ""]:
        """The loss (Eq. 7) with this objective's conventions.

        Args:
          logits: logits of all exits.
          labels: classes, from 0, or the probability of each class.
          teacher: the teacher's logits.
          alpha: like the attribute, or a traced scalar.
          temperature: like the attribute, or a traced scalar.

        Returns:
          A scalar in nats.
        """
        return one_for_all_loss(
            logits,
            labels,
            teacher,
            alpha=alpha,
            temperature=temperature,
            reduction=self.reduction,
            temperature_squared=self.temperature_squared,
            last_exit=self.last_exit,
            label_smoothing=self.label_smoothing,
        )


# NNX filters of the variables that a phase trains. Phase II's does not match the phase-I heads,
# whose path is "phase_one_heads".
ALL_PARAMETERS = nnx.Param
HEAD_PARAMETERS = nnx.All(nnx.Param, lambda path, value: bool(path) and path[0] == "heads")


def masked_sums(
    logits: Float[Array, "E N K"], labels: Int[Array, " N"], mask: Bool[Array, " N"]
) -> dict[str, Num[Array, "..."]]:
    """Sums over the examples of a padded batch, from which means over a split are computed.

    Args:
      logits: logits of all exits.
      labels: classes, from 0.
      mask: False for padding.

    Returns:
      `loss` [E] in nats, `correct` [E] and `count` [].
    """
    chex.assert_shape([labels, mask], logits.shape[1:2])
    per_exit_labels = jnp.broadcast_to(labels, logits.shape[:2])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, per_exit_labels)
    correct = logits.argmax(axis=-1) == labels[None]
    return {
        "loss": jnp.where(mask[None], nats, 0.0).sum(axis=-1),
        "correct": (mask[None] & correct).sum(axis=-1),
        "count": mask.sum(),
    }
