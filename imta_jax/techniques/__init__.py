"""Training techniques: the paper's three, and later ones of the same kind.

They do not depend on datasets, backbones or the training loop.
"""

from imta_jax.techniques.boosted_logits import BoostedHeads
from imta_jax.techniques.cross_entropy import cross_entropy
from imta_jax.techniques.detached_features import (
    DETACHED_MAPS,
    FeatureDetachment,
    stop_channels,
)
from imta_jax.techniques.exit_rules import (
    ExitRule,
    confidence_score,
    entropy_score,
    fitted_by,
    get_exit_rule,
    margin_score,
    patience_score,
)
from imta_jax.techniques.gradient_equilibrium import (
    EQUILIBRIUM_MODES,
    rescale_gradient,
    split_gradient,
)
from imta_jax.techniques.inline_collaboration import (
    TRANSFERS,
    IndependentHeads,
    ResidualHeads,
    TransferHeads,
)
from imta_jax.techniques.one_for_all import (
    LAST_EXIT_LOSSES,
    REDUCTIONS,
    one_for_all_loss,
    teacher_divergence,
)

__all__ = [
    "DETACHED_MAPS",
    "EQUILIBRIUM_MODES",
    "LAST_EXIT_LOSSES",
    "REDUCTIONS",
    "TRANSFERS",
    "BoostedHeads",
    "ExitRule",
    "FeatureDetachment",
    "IndependentHeads",
    "ResidualHeads",
    "TransferHeads",
    "confidence_score",
    "cross_entropy",
    "entropy_score",
    "fitted_by",
    "get_exit_rule",
    "margin_score",
    "one_for_all_loss",
    "patience_score",
    "rescale_gradient",
    "split_gradient",
    "stop_channels",
    "teacher_divergence",
]
