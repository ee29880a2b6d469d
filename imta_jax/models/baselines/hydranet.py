"""Hydra-Res: the HydraNet template (Mullapudi et al., CVPR 2018) on the CIFAR ResNet; one exit.

A stem computes what all images need, branches compute features for groups of similar classes, a
gate looks at the stem's map and chooses the k branches that run, and a combiner puts their features
together. Here the stem is a 6n+2 ResNet's first two groups, every branch (and the gate) is a third
group of its own, pooled and mapped by a linear layer; the k chosen branches' features are added
with the gate's weights.

The published configuration behind Table 1 is not public. `hydra_search.py` looks for the one that
fits its two columns best, and says how far off each row is. Two facts lead it:
- d cannot be the number of branches: the lines through both columns start below zero (-0.30 M
  parameters, -14 M multiply-adds at d = 0), and a stem and a classifier cost more than nothing.
  With d blocks per group, He et al.'s n, they do start below zero: the first block of a group reads
  half the channels. The rows d = 1 to 7 and 9 are then ResNet-8 to 44 and 56.
- In units of a group with 16, 32 and 64 channels the slopes are whole: 21.0 third groups are stored
  and 12.0 run besides two of the stem. So 20 branches, as many as CIFAR-100 has superclasses, and a
  gate like them, and 11 of the branches run.
With them the parameters of all rows are the printed ones to 0.1 %, and the multiply-adds lie 1.5,
0.6, 0.4, 0.6, 0.5, 0.4, 0.3 and 0.2 % below; counted as the paper counts MSDNet's (with ReLUs and
pooling), at most 1.1 % below, that is less than 1 M in every row.

Branches specialise through the gate: it is trained, besides through the weights, towards the
branch that its image's class is assigned to (`class_clusters.py`, `training/gate_objective.py`).
How the published one was trained, and with which weight, is not known to us.

What runs: a batch computes all branches and weights those not chosen with zero; a single image, in
inference, computes the chosen ones only. `evaluation.exit_costs` traces a single image, so that its
multiply-adds are those of k branches, and its parameters those of all that are stored.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.errors import InputError
from imta_jax.models.baselines.class_clusters import clusters_by_index
from imta_jax.models.baselines.resnet import basic_group
from imta_jax.models.fields import check_depths, check_positive
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.nn.layers import ConvBNReLU, linear

State = tuple[jax.Array, ...]

_GROUPS = 3


@dataclasses.dataclass(frozen=True)
class HydraNetSpec:
    """The fields of `config.model` that a Hydra-Res has and what fits each.

    Attributes:
      channels: of the first group; the second has twice as many, the branches four times.
      depths: blocks of the first group, of the second, and of each branch.
      branches: how many are stored.
      active_branches: k, how many run for an image.
      gate_weight: of the gate's own loss in phase I, 0 for none (`training/gate_objective.py`).
      class_clusters: the branch, from 0, that is to serve each class; () for runs of neighbours.
      initialization: a name in `imta_jax.nn.initialization.INITIALIZATIONS`.
    """

    channels: int
    depths: tuple[int, ...]
    branches: int
    active_branches: int
    gate_weight: float = 0.0
    class_clusters: tuple[int, ...] = ()
    initialization: str = "he_normal"

    def __post_init__(self):
        check_positive(self, "channels", "branches", "active_branches")
        check_depths(self, _GROUPS)
        if not self.gate_weight >= 0:
            found = self.gate_weight
            raise InputError(f"config.model.gate_weight must not be negative; found {found}")
        if self.active_branches > self.branches:
            raise InputError(
                f"config.model.active_branches must be at most branches={self.branches}; found "
                f"{self.active_branches}"
            )


class Branch(nnx.Module):
    """A ResNet's third group, pooled, and a linear layer: from the stem's map to features."""

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        depth: int,
        *,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.List(basic_group(inputs, width, depth, 2, init=init, rngs=rngs))
        self.project = linear(width, outputs, init=init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the stem's map [N, H, W, inputs] to [N, outputs]."""
        for block in self.blocks:
            x = block(x)
        return self.project(x.mean(axis=(1, 2)))


class Gate(nnx.Module):
    """Scores of the branches: built like a branch, with a hidden layer as wide."""

    def __init__(
        self,
        inputs: int,
        width: int,
        branches: int,
        depth: int,
        *,
        init: Initialization,
        rngs: nnx.Rngs,
    ):
        self.features = Branch(inputs, width, width, depth, init=init, rngs=rngs)
        self.score = linear(width, branches, init=init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps the stem's map [N, H, W, inputs] to scores [N, branches]."""
        return self.score(jax.nn.relu(self.features(x)))


def chosen_branches(scores: jax.Array, active: int) -> tuple[jax.Array, jax.Array]:
    """The k best branches of each image, and their weights: the softmax over those k scores.

    Args:
      scores: [N, B].
      active: k, 1 to B.

    Returns:
      (indices [N, k], weights [N, k] that sum to 1); gradients flow through the weights.
    """
    best, indices = jax.lax.top_k(scores, active)
    return indices, jax.nn.softmax(best, axis=-1)


def spread_weights(indices: jax.Array, weights: jax.Array, branches: int) -> jax.Array:
    """Weights of all branches [N, B], exactly 0 for those not chosen, from [N, k] and [N, k]."""
    return (jax.nn.one_hot(indices, branches) * weights[..., None]).sum(axis=1)


class HydraNet(nnx.Module):
    """The backbone contract (see `classifier.Backbone`) on stem, gate and branches.

    Attributes:
      spec: the fields it was built from.
      num_exits: 1.
      feature_widths: of the combined features.
    """

    def __init__(self, spec: HydraNetSpec, image_channels: int, *, rngs: nnx.Rngs):
        init = get_initialization(spec.initialization)
        group = functools.partial(basic_group, init=init, rngs=rngs)
        first, second, third = (spec.channels * 2**n for n in range(_GROUPS))
        self.spec = spec
        self.num_exits, self.feature_widths = 1, (third,)
        self.opening = ConvBNReLU(image_channels, first, 3, init=init, rngs=rngs)
        self.blocks = nnx.List(
            [*group(first, first, spec.depths[0], 1), *group(first, second, spec.depths[1], 2)]
        )
        depth = spec.depths[2]
        self.gate = Gate(second, third, spec.branches, depth, init=init, rngs=rngs)
        self.branches = nnx.List(
            [
                Branch(second, third, third, depth, init=init, rngs=rngs)
                for _ in range(spec.branches)
            ]
        )

    def stem(self, images: jax.Array) -> State:
        """Maps images [N, H, W, C] to the map that gate and branches read."""
        x = self.opening(images)
        for block in self.blocks:
            x = block(x)
        return (x,)

    def stage(self, i: int, state: State) -> State:
        """Runs gate and branches: ([N, H', W', C'],) to their combined features ([N, 1, 1, C],)."""
        return self.stage_with_scores(state)[0]

    def stage_with_scores(self, state: State) -> tuple[State, jax.Array]:
        """As `stage`, and the gate's scores [N, B], which its own loss needs."""
        (x,) = state
        scores = self.gate(x)
        indices, weights = chosen_branches(scores, self.spec.active_branches)
        if len(x) == 1 and self._infers():
            features = self._of_chosen(x, indices[0])  # [k, C]
            combined = (weights[0, :, None] * features).sum(axis=0)[None]
        else:
            features = jnp.stack([branch(x) for branch in self.branches], axis=1)  # [N, B, C]
            spread = spread_weights(indices, weights, self.spec.branches)
            combined = (spread[..., None] * features).sum(axis=1)
        return (combined.astype(x.dtype)[:, None, None],), scores

    def exit_features(self, i: int, state: State) -> jax.Array:
        """Combined features [N, feature_widths[0]], activated."""
        return jax.nn.relu(state[0][:, 0, 0])

    def clusters(self, num_classes: int) -> np.ndarray:
        """The branch [K] that is to serve each class, as the fields say.

        Raises:
          ValueError: `class_clusters` of another length, or of branches that are not there.
        """
        given, branches = self.spec.class_clusters, self.spec.branches
        if not given:
            return clusters_by_index(num_classes, min(branches, num_classes))
        if len(given) != num_classes or not all(0 <= cluster < branches for cluster in given):
            raise InputError(
                f"config.model.class_clusters must give each of {num_classes} classes a branch "
                f"from 0 to {branches - 1}; found {given}"
            )
        return np.asarray(given)

    def _infers(self) -> bool:
        """Whether running statistics are used; with a batch's own, branches cannot be left out."""
        return bool(self.opening.norm.use_running_average)

    def _of_chosen(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        """Features [k, C] of one image's [1, H, W, C] from the branches at `indices` [k]."""
        graphdef = nnx.graphdef(self.branches[0])
        stored = [nnx.state(branch) for branch in self.branches]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stored)
        features = []
        for n in range(self.spec.active_branches):
            chosen = jax.tree.map(lambda leaf, n=n: leaf[indices[n]], stacked)
            features.append(nnx.merge(graphdef, chosen)(x))
        return jnp.concatenate(features)
