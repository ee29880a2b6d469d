"""The paper's three techniques, independent of datasets, backbones and the training loop."""

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
    cross_entropy,
    one_for_all_loss,
    teacher_divergence,
)

__all__ = [
    "EQUILIBRIUM_MODES",
    "LAST_EXIT_LOSSES",
    "REDUCTIONS",
    "TRANSFERS",
    "IndependentHeads",
    "ResidualHeads",
    "TransferHeads",
    "cross_entropy",
    "one_for_all_loss",
    "rescale_gradient",
    "split_gradient",
    "teacher_divergence",
]
