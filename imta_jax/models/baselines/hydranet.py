"""Hydra-Res: HydraNet (Mullapudi et al., CVPR 2018) on the CIFAR ResNet, with one exit.

A stem computes shared features, branches compute features for clusters of similar classes, a gate
reads the stem's map and selects the k branches that run, and a combiner adds their features with
the gate's weights. The stem is the first two groups of a 6n+2 ResNet. Each branch, and the gate, is
a third group of its own, followed by pooling and a linear layer.

The configuration behind the paper's Table 1 is not published. `studies/hydra_search.py` searches
for the one that fits both columns best. Two observations lead to it:
- d is not the number of branches: the lines through both columns have negative intercepts (-0.30 M
  parameters, -14 M multiply-adds at d = 0), which a stem and a classifier exclude. With d blocks
  per group (n of He et al.) the intercepts are negative, because the first block of a group reads
  half the channels. The rows d = 1 to 7 and 9 are then ResNet-8 to 44 and 56.
- In units of a group with 16, 32 and 64 channels the slopes are integers: 21.0 third groups are
  stored, and 12.0 run in addition to the two groups of the stem. This gives 20 branches (CIFAR-100
  has 20 superclasses), a gate of the same size, and 11 active branches.
The parameters of all rows then agree to 0.1 %. The multiply-adds are 1.5, 0.6, 0.4, 0.6, 0.5, 0.4,
0.3 and 0.2 % too low; counted as the paper counts MSDNet (with ReLUs and pooling), at most 1.1 %,
which is less than 1 M in every row.

Branches specialize through the gate. It is trained through its weights and towards the branch of
the image's class (`class_clusters.py`, `training/gate_objective.py`). How the published network was
trained is not known.

A batch computes all branches and gives those that are not selected weight zero. In inference a
single image computes the selected branches only. `evaluation.exit_costs` traces a single image: its
multiply-adds are those of k branches, its parameters those of all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imta_jax.errors import InputError
from imta_jax.models.baselines.class_clusters import clusters_by_index
from imta_jax.models.baselines.resnet import basic_group
from imta_jax.models.spec_fields import check_depths, check_positive
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.nn.layers import ConvBNReLU, linear

State = tuple[Float[Array, "N _ _ _"], ...]

_GROUPS = 3


@dataclasses.dataclass(frozen=True)
class HydraNetSpec:
    """The fields of `config.model` for a Hydra-Res.

    Attributes:
      channels: channels of the first group; the second has twice, the branches four times as many.
      depths: blocks of the first group, of the second group, and of each branch.
      branches: number of branches B.
      active_branches: number k of branches that run for an image.
      gate_weight: weight of the gate's own loss in phase I; 0 for none.
      class_clusters: branch, from 0, of each class; () for clusters of consecutive classes.
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
            weight = self.gate_weight
            raise InputError(f"config.model.gate_weight must not be negative; found {weight}")
        if self.active_branches > self.branches:
            raise InputError(
                f"config.model.active_branches must be at most branches={self.branches}; found "
                f"{self.active_branches}"
            )


class Branch(nnx.Module):
    """The third group of a ResNet, pooling and a linear layer."""

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

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N O"]:
        """Maps the stem's map to features of `outputs` channels O."""
        for block in self.blocks:
            x = block(x)
        return self.project(x.mean(axis=(1, 2)))


class Gate(nnx.Module):
    """Scores of the branches: a branch, ReLU and a linear layer."""

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

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N B"]:
        """Maps the stem's map to scores of the B branches."""
        return self.score(jax.nn.relu(self.features(x)))


def select_branches(
    scores: Float[Array, "N B"], active: int
) -> tuple[Int[Array, "N k"], Float[Array, "N k"]]:
    """Selects the k branches with the highest scores and weights them by their softmax.

    Args:
      scores: scores of the B branches.
      active: number of branches k, 1 to B.

    Returns:
      (indices, weights that sum to 1); gradients flow through the weights.
    """
    best, indices = jax.lax.top_k(scores, active)
    return indices, jax.nn.softmax(best, axis=-1)


def spread_weights(
    indices: Int[Array, "N k"], weights: Float[Array, "N k"], branches: int
) -> Float[Array, "N B"]:
    """Weights of all B branches, 0 for those not selected."""
    return (jax.nn.one_hot(indices, branches) * weights[..., None]).sum(axis=1)


class HydraNet(nnx.Module):
    """The backbone contract (`classifier.Backbone`) on stem, gate and branches.

    Attributes:
      spec: the fields.
      num_exits: 1.
      feature_widths: channels of the combined features.
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

    def stem(self, images: Float[Array, "N H W C"]) -> State:
        """Maps images to the input of gate and branches."""
        x = self.opening(images)
        for block in self.blocks:
            x = block(x)
        return (x,)

    def stage(self, i: int, state: State) -> State:
        """Maps the stem's output to the combined features ([N, 1, 1, C],)."""
        return self.stage_with_scores(state)[0]

    def stage_with_scores(self, state: State) -> tuple[State, Float[Array, "N B"]]:
        """Like `stage`; also returns the gate's scores for its own loss."""
        (x,) = state
        scores = self.gate(x)
        indices, weights = select_branches(scores, self.spec.active_branches)
        if len(x) == 1 and self._in_inference_mode():
            features = self._selected_features(x, indices[0])  # [k, C]
            combined = (weights[0, :, None] * features).sum(axis=0)[None]
        else:
            features = jnp.stack([branch(x) for branch in self.branches], axis=1)  # [N, B, C]
            spread = spread_weights(indices, weights, self.spec.branches)
            combined = (spread[..., None] * features).sum(axis=1)
        return (combined.astype(x.dtype)[:, None, None],), scores

    def exit_features(self, i: int, state: State) -> Float[Array, "N F"]:
        """Combined features after ReLU, with F = feature_widths[0]."""
        return jax.nn.relu(state[0][:, 0, 0])

    def clusters(self, num_classes: int) -> Int[np.ndarray, " K"]:
        """The branch of each class.

        Raises:
          InputError: `class_clusters` has another length or branches that do not exist.
        """
        assigned, branches = self.spec.class_clusters, self.spec.branches
        if not assigned:
            return clusters_by_index(num_classes, min(branches, num_classes))
        if len(assigned) != num_classes or not all(0 <= cluster < branches for cluster in assigned):
            raise InputError(
                f"config.model.class_clusters must have {num_classes} entries, one per class, "
                f"from 0 to {branches - 1}; found {assigned}"
            )
        return np.asarray(assigned)

    def _in_inference_mode(self) -> bool:
        """Whether running statistics are used; batch statistics need all branches."""
        return bool(self.opening.norm.use_running_average)

    def _selected_features(
        self, x: Float[Array, "1 H W I"], indices: Int[Array, " k"]
    ) -> Float[Array, "k C"]:
        """Features of one image from the branches at `indices`."""
        graphdef = nnx.graphdef(self.branches[0])
        states = [nnx.state(branch) for branch in self.branches]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        features = []
        for n in range(self.spec.active_branches):
            selected = jax.tree.map(lambda leaf, n=n: leaf[indices[n]], stacked)
            features.append(nnx.merge(graphdef, selected)(x))
        return jnp.concatenate(features)
