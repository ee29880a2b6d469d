"""Phase I of a network with a gate (`models/hydranet.py`), which learns whom each branch serves."""

import dataclasses

import jax

from imta_jax.models import MultiExitClassifier
from imta_jax.models.baselines.class_clusters import gate_loss
from imta_jax.training.objectives import ExitMetrics, PhaseOneObjective, exit_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSupervisedObjective(PhaseOneObjective):
    """Cross-entropy of the one exit, plus that of the gate against the branch of the image's class.

    Without the second term a branch that is never chosen is never trained, and so never chosen.

    Attributes:
      equilibrium, exit_losses, rematerialize: as in `PhaseOneObjective`; with one exit, and a stage
        that tells its gate's scores, they change nothing.
      gate_weight: of the gate's term, above 0.
    """

    gate_weight: float

    def __call__(
        self, classifier: MultiExitClassifier, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, ExitMetrics]:
        """Maps normalised images [N, H, W, C] and labels [N] to (scalar loss, metrics)."""
        backbone = classifier.backbone
        state, scores = backbone.stage_with_scores(classifier.stem(images))
        logits = classifier.logits((backbone.exit_features(0, state),))
        clusters = backbone.clusters(classifier.num_classes)
        metrics = exit_metrics(logits, labels)
        gate = gate_loss(scores, labels, clusters)
        return metrics.loss.sum() + self.gate_weight * gate, metrics
