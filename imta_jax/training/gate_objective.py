"""The phase-I loss of a backbone with a gate, HydraNet (`models/baselines/hydranet.py`)."""

import dataclasses
from typing import ClassVar, cast

from jaxtyping import Array, Float, Int

from imta_jax.models import MultiExitClassifier
from imta_jax.models.baselines.class_clusters import gate_loss
from imta_jax.models.baselines.hydranet import HydraNet
from imta_jax.runtime.config_fields import number
from imta_jax.techniques.cross_entropy import add_label_smoothing
from imta_jax.training.objectives import ExitMetrics, PhaseOneObjective, exit_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSupervisedObjective(PhaseOneObjective):
    """Cross-entropy of the one exit, plus that of the gate against the branch of the image's class.

    Without the second term, a branch that the gate never selects is never trained.

    Attributes:
      equilibrium, exit_losses, detachment, rematerialize: see `PhaseOneObjective`; without effect,
        because the network has one exit.
      label_smoothing: epsilon of the exit's cross-entropy; the gate's loss has none.
      gate_weight: weight of the gate's loss, above 0.
    """

    section: ClassVar[str] = "GateSupervisedObjective"

    gate_weight: float = number(above=0)

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Int[Array, " N"],
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`."""
        backbone = cast(HydraNet, classifier.backbone)
        state, scores = backbone.stage_with_scores(classifier.stem(images))
        logits = classifier.logits((backbone.exit_features(0, state),))
        clusters = backbone.clusters(classifier.num_classes)
        metrics = exit_metrics(logits, labels)
        gate = gate_loss(scores, labels, clusters)
        losses = add_label_smoothing(metrics.loss, logits, self.label_smoothing)
        return losses.sum() + self.gate_weight * gate, metrics
