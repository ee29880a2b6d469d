"""The losses of the two phases: they map a classifier and a batch to a loss and metrics per exit.

A new loss is a class with the methods of `Objective`.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from imta_jax.errors import InputError, unknown_name
from imta_jax.models import MultiExitClassifier
from imta_jax.techniques import (
    EQUILIBRIUM_MODES,
    LAST_EXIT_LOSSES,
    REDUCTIONS,
    cross_entropy,
    one_for_all_loss,
)

# Phase I: the sum of the exits' losses (Eq. 1), or their mean, which also bounds gradients but
# makes them small (Sec. 3.1).
EXIT_LOSSES = ("sum", "mean")
# The teacher in phase II: the network's own last exit (Eq. 8), or phase I's (published code).
TEACHERS = ("own_last_exit", "phase_one_last_exit")
# BatchNorm of the frozen backbone in phase II: with frozen running statistics, or with batch
# statistics that still update the running ones (published code).
BACKBONE_STATISTICS = ("frozen", "moving")


class ExitMetrics(NamedTuple):
    """Metrics per exit over one batch.

    Attributes:
      loss: mean cross-entropy in nats.
      top1: top-1 accuracy in percent.
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
        labels: Int[Array, " N"],
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """Maps normalized images and labels to the loss and metrics."""
        ...


def exit_metrics(logits: Float[Array, "E N K"], labels: Int[Array, " N"]) -> ExitMetrics:
    """Cross-entropy and top-1 accuracy per exit."""
    correct = logits.argmax(axis=-1) == labels[None]
    return ExitMetrics(cross_entropy(logits, labels), 100 * correct.mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class PhaseOneObjective:
    """Cross-entropy of all exits (Eq. 1 with weights 1), with gradient equilibrium.

    Attributes:
      equilibrium: one of `techniques.EQUILIBRIUM_MODES`.
      exit_losses: one of `EXIT_LOSSES`.
      rematerialize: see `MultiExitClassifier.features`.

    Raises:
      InputError: an unknown name.
    """

    equilibrium: str
    exit_losses: str = "sum"
    rematerialize: bool = False

    def __post_init__(self) -> None:
        if self.equilibrium not in EQUILIBRIUM_MODES:
            raise unknown_name("equilibrium", self.equilibrium, EQUILIBRIUM_MODES)
        if self.exit_losses not in EXIT_LOSSES:
            raise unknown_name("exit_losses", self.exit_losses, EXIT_LOSSES)

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Train mode everywhere."""
        classifier.train()

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Int[Array, " N"],
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`."""
        features = classifier.features(images, self.equilibrium, rematerialize=self.rematerialize)
        metrics = exit_metrics(classifier.logits(features), labels)
        loss = metrics.loss.sum() if self.exit_losses == "sum" else metrics.loss.mean()
        return loss, metrics


def freeze_backbone(classifier: MultiExitClassifier) -> None:
    """Freezes the running statistics of the backbone's BatchNorms."""
    backbone: Any = classifier.backbone
    backbone.eval()


@dataclasses.dataclass(frozen=True)
class PhaseTwoObjective:
    """One-for-all distillation (Eq. 7-8) of collaborative heads on a fixed backbone.

    Attributes:
      alpha, temperature, reduction, temperature_squared, last_exit: see
        `techniques.one_for_all_loss`.
      teacher: one of `TEACHERS`.
      backbone_statistics: one of `BACKBONE_STATISTICS`.

    Raises:
      InputError: an unknown name, alpha outside 0 to 1, or a temperature that is not above 0.
    """

    alpha: float
    temperature: float
    reduction: str
    temperature_squared: bool
    last_exit: str
    teacher: str
    backbone_statistics: str

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS:
            raise unknown_name("teacher", self.teacher, TEACHERS)
        if self.backbone_statistics not in BACKBONE_STATISTICS:
            raise unknown_name("backbone_statistics", self.backbone_statistics, BACKBONE_STATISTICS)
        if self.reduction not in REDUCTIONS:
            raise unknown_name("reduction", self.reduction, REDUCTIONS)
        if self.last_exit not in LAST_EXIT_LOSSES:
            raise unknown_name("last_exit", self.last_exit, LAST_EXIT_LOSSES)
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha must lie in 0 to 1; found {self.alpha}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0; found {self.temperature}")

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Train mode of the heads; the backbone's statistics follow `backbone_statistics`."""
        classifier.train()
        if self.backbone_statistics == "frozen":
            freeze_backbone(classifier)

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Int[Array, " N"],
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`; the gradient stops at the features."""
        features = jax.lax.stop_gradient(classifier.features(images))
        logits = classifier.logits(features)
        if self.teacher == "own_last_exit":
            teacher = logits[-1]
        else:
            teacher = classifier.phase_one_logits(features)
        loss = self.loss(logits, labels, teacher, self.alpha, self.temperature)
        return loss, exit_metrics(logits, labels)

    def loss(
        self,
        logits: Float[Array, "E N K"],
        labels: Int[Array, " N"],
        teacher: Float[Array, "N K"],
        alpha: float | jax.Array,
        temperature: float | jax.Array,
    ) -> Float[Array, ""]:
        """The loss (Eq. 7) with this objective's conventions.

        Args:
          logits: of all exits.
          labels: classes, from 0.
          teacher: the teacher's logits.
          alpha: like the attribute, or a traced scalar.
          temperature: like the attribute, or a traced scalar.

        Returns:
          A scalar in nats.
        """
        scalars: Any = {"alpha": alpha, "temperature": temperature}
        return one_for_all_loss(
            logits,
            labels,
            teacher,
            **scalars,
            reduction=self.reduction,
            temperature_squared=self.temperature_squared,
            last_exit=self.last_exit,
        )


# NNX filters of the variables that a phase trains. Phase II's does not match the phase-I heads,
# whose path is "phase_one_heads".
ALL_PARAMETERS = nnx.Param
HEAD_PARAMETERS = nnx.All(nnx.Param, lambda path, value: bool(path) and path[0] == "heads")


def masked_sums(
    logits: Float[Array, "E N K"], labels: Int[Array, " N"], mask: Bool[Array, " N"]
) -> dict[str, jax.Array]:
    """Sums over the examples of a padded batch, from which means over a split are computed.

    Args:
      logits: of all exits.
      labels: classes, from 0.
      mask: False for padding.

    Returns:
      `loss` [E] in nats, `correct` [E] and `count` [].
    """
    log_p = jax.nn.log_softmax(logits)
    index = jnp.broadcast_to(labels[None, :, None], (*logits.shape[:2], 1))
    nats = -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
    correct = logits.argmax(axis=-1) == labels[None]
    return {
        "loss": jnp.where(mask[None], nats, 0.0).sum(axis=-1),
        "correct": (mask[None] & correct).sum(axis=-1),
        "count": mask.sum(),
    }
