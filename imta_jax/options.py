"""Names of the options of the techniques and objectives, for the config and for direct callers."""

from typing import Literal

# Feature maps that gradient equilibrium rescales: none, the coarsest (published code), or all,
# which Eq. 5 needs to hold exactly.
EquilibriumMode = Literal["off", "coarsest", "all"]
# Feature maps of which later exits train a part of the channels only (detached feature halves).
DetachedMaps = Literal["off", "coarsest", "all"]
# Weights of the images in the losses of phase I: 1, or predicted by a small network that is trained
# along with the classifier.
SampleWeights = Literal["uniform", "learned"]
# Phase I: the sum of the exits' losses (Eq. 1), or their mean, which also bounds gradients but
# makes them small (Sec. 3.1).
ExitLosses = Literal["sum", "mean"]
# What an exit passes to the next: nothing, its logits (they are added), or a learned transform of
# its logits.
Transfer = Literal["none", "identity", "linear"]
# The teacher in phase II: the network's own last exit (Eq. 8), or phase I's (published code).
Teacher = Literal["own_last_exit", "phase_one_last_exit"]
# Reduction of the divergence over a batch: "batch" sums over classes and averages over images
# (Eq. 8); "elements" averages over both, which is K times smaller (published code).
Reduction = Literal["batch", "elements"]
# Loss of the last exit: "mixed" is Eq. 7, as for every exit; "cross_entropy" is plain cross-entropy
# with weight 1 (published code).
LastExitLoss = Literal["mixed", "cross_entropy"]
# BatchNorm of the frozen backbone in phase II: with frozen running statistics, or with batch
# statistics that still update the running ones (published code).
BackboneStatistics = Literal["frozen", "moving"]
# Images that share the statistics of BatchNorm in training: the batch over all devices, the images
# of each device (published code), or groups of a given size.
BatchStatistics = Literal["global", "per_device", "group"]
# Precision of matrix products and convolutions of float32 maps; see `nn.precision`.
MatmulPrecision = Literal["default", "high", "highest"]
