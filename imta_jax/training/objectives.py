"""What each phase minimises: a classifier and a batch in, a loss and per-exit metrics out.

A new loss is a function of this shape, handed to `step.train_step`.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.errors import InputError, unknown_name
from imta_jax.models import MultiExitClassifier
from imta_jax.techniques import (
    EQUILIBRIUM_REACHES,
    LAST_EXIT_LOSSES,
    REDUCTIONS,
    cross_entropy,
    one_for_all_loss,
)

# What phase I makes of the exits' losses: their sum (Eq. 1) or their mean, which keeps gradients
# bounded too but makes them small (Sec. 3.1).
EXIT_LOSSES = ("sum", "mean")
# Who teaches in phase II: the network's own last exit (Eq. 8), or the phase-I one (reference code).
TEACHERS = ("own_last_exit", "phase_one_last_exit")
# Batch normalisation of the frozen backbone in phase II: running statistics that stay as they are,
# or batch statistics that keep moving the running ones (reference code).
BACKBONE_STATISTICS = ("frozen", "moving")


class ExitMetrics(NamedTuple):
    """Per exit, over one batch.

    Attributes:
      loss: [E], mean cross-entropy in nats.
      top1: [E], percent.
    """

    loss: jax.Array
    top1: jax.Array


class Objective(Protocol):
    """A loss: puts the classifier's parts in their modes, then maps a batch to a scalar."""

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Chooses train or eval mode of each part, before the classifier is split for the step."""

    def __call__(
        self, classifier: MultiExitClassifier, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, ExitMetrics]:
        """Maps normalised images [N, H, W, C] and labels [N] to (scalar loss, metrics)."""


def exit_metrics(logits: jax.Array, labels: jax.Array) -> ExitMetrics:
    """Cross-entropy and accuracy of logits [E, N, K] against labels [N]."""
    correct = logits.argmax(axis=-1) == labels[None]
    return ExitMetrics(cross_entropy(logits, labels), 100 * correct.mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class PhaseOneObjective:
    """Cross-entropy of all exits (Eq. 1 with weights 1), under gradient equilibrium.

    Attributes:
      equilibrium: one of `techniques.EQUILIBRIUM_REACHES`.
      exit_losses: one of `EXIT_LOSSES`.
      rematerialize: see `MultiExitClassifier.features`.

    Raises:
      ValueError: an unknown name.
    """

    equilibrium: str
    exit_losses: str = "sum"
    rematerialize: bool = False

    def __post_init__(self) -> None:
        if self.equilibrium not in EQUILIBRIUM_REACHES:
            raise unknown_name("equilibrium", self.equilibrium, EQUILIBRIUM_REACHES)
        if self.exit_losses not in EXIT_LOSSES:
            raise unknown_name("exit_losses", self.exit_losses, EXIT_LOSSES)

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Everything trains."""
        classifier.train()

    def __call__(
        self, classifier: MultiExitClassifier, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, ExitMetrics]:
        """See `Objective`."""
        features = classifier.features(images, self.equilibrium, rematerialize=self.rematerialize)
        metrics = exit_metrics(classifier.logits(features), labels)
        loss = metrics.loss.sum() if self.exit_losses == "sum" else metrics.loss.mean()
        return loss, metrics


def freeze_backbone(classifier: MultiExitClassifier) -> None:
    """Normalizes with the backbone's running statistics, which then stay as they are."""
    classifier.backbone.eval()


@dataclasses.dataclass(frozen=True)
class PhaseTwoObjective:
    """One-for-all distillation (Eq. 7-8) on collaborative heads over a backbone that stays fixed.

    Attributes:
      alpha, temperature, reduction, temperature_squared, last_exit: see
        `techniques.one_for_all_loss`.
      teacher: one of `TEACHERS`.
      backbone_statistics: one of `BACKBONE_STATISTICS`.

    Raises:
      ValueError: an unknown name, alpha outside 0 to 1, a temperature not above 0.
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
        """The heads train; the backbone's normalisation is frozen or, as published, moves on."""
        classifier.train()
        if self.backbone_statistics == "frozen":
            freeze_backbone(classifier)

    def __call__(
        self, classifier: MultiExitClassifier, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, ExitMetrics]:
        """See `Objective`; no gradient is computed beyond the features."""
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
        logits: jax.Array,
        labels: jax.Array,
        teacher: jax.Array,
        alpha: float | jax.Array,
        temperature: float | jax.Array,
    ) -> jax.Array:
        """The loss (Eq. 7) by this objective's conventions, at a weight and temperature given.

        Args:
          logits: [E, N, K].
          labels: [N].
          teacher: its logits, [N, K].
          alpha: as the attribute, or a traced scalar.
          temperature: likewise.

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
        )


# What a phase trains; everything else is frozen, and a test shows it bit-identical.
ALL_PARAMETERS = nnx.Param
# The phase-I heads kept beside ("phase_one_heads") are another path and stay frozen.
HEAD_PARAMETERS = nnx.All(nnx.Param, lambda path, value: bool(path) and path[0] == "heads")


def masked_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the real examples of a padded batch, to be divided once at the end.

    Args:
      logits: [E, N, K].
      labels: [N].
      mask: bool [N], False for padding.

    Returns:
      `loss` [E] (nats), `correct` [E], `count` scalar.
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
