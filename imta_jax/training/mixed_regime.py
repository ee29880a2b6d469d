"""The mixed regime (Kubaty et al., "How to Train Your Multi-Exit Model?", ICML 2025).

The last exit's cross-entropy alone trains the network for some epochs. Then all exits are trained
jointly (arXiv 2407.14320, Sec. 3). Each part has a schedule of the learning rate of its own, as in
the source; the state of the optimizer is kept. Both parts together have the epochs of the phase.
"""

import dataclasses

from jaxtyping import Array, Float

from imta_jax.models import MultiExitClassifier
from imta_jax.techniques.cross_entropy import add_label_smoothing
from imta_jax.training.objectives import ExitMetrics, exit_metrics
from imta_jax.types import Labels


@dataclasses.dataclass(frozen=True)
class LastExitObjective:
    """Cross-entropy of the last exit, without gradient equilibrium or detached features.

    Parameters of other exits receive no gradient; weight decay still applies to them. All exits
    are measured, which computes them in the forward pass only.

    Attributes:
      rematerialize, rematerialize_layers: see `MultiExitClassifier.features`.
      label_smoothing: epsilon of `techniques.cross_entropy`.
    """

    rematerialize: bool = False
    rematerialize_layers: bool = False
    label_smoothing: float = 0.0

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
        features = classifier.features(
            images,
            rematerialize=self.rematerialize,
            rematerialize_layers=self.rematerialize_layers,
        )
        logits = classifier.logits(features)
        metrics = exit_metrics(logits, labels)
        return add_label_smoothing(metrics.loss, logits, self.label_smoothing)[-1], metrics
