"""Several arms of phase II trained at once, on one pass through the frozen backbone.

Phase II differs only in the heads (paper Sec. 4), so that arms of a study which start from the same
phase-I network can share its features, by far the most of a step. Heads of equal structure are
stacked, [A, ...], and mapped over with `jax.vmap`; each arm is trained as it would be alone, on the
same batches in the same order. `imta_jax.studies` decides which arms go together.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from imta_jax.data import Dataset
from imta_jax.models import Heads, MultiExitClassifier, run_heads
from imta_jax.training.checkpoints import restore_model
from imta_jax.training.objectives import (
    HEAD_PARAMETERS,
    ExitMetrics,
    PhaseTwoObjective,
    exit_metrics,
    freeze_backbone,
)
from imta_jax.training.phases import (
    new_phase_two,
    phase_two_objective,
    train_phase,
    trained_phase_one,
)

# What phase-II arms may differ in and still share a backbone: the heads and their loss.
_OF_THE_HEADS = ("transfer", "stop_gradient", "start")
# What is mapped over as numbers; arms that differ in anything else of their loss are another group.
_NUMBERS = ("alpha", "temperature")


def can_share(config: Mapping[str, Any]) -> bool:
    """Whether an arm may be trained beside others: its backbone stays as it is.

    An arm that is to be judged by its best epoch, not its last, has to be saved by itself too.
    """
    frozen = config["phase_two"]["backbone_statistics"] == "frozen"
    return frozen and config["evaluation"]["checkpoint"] == "last"


def shared_settings(config: Mapping[str, Any]) -> str:
    """What has to be equal for two arms to share a backbone, as a string to compare."""
    ours = {*_OF_THE_HEADS, *(field.name for field in dataclasses.fields(PhaseTwoObjective))}
    phase = {name: value for name, value in config["phase_two"].items() if name not in ours}
    parts = ("seed", "data", "model", "phase_one", "mesh")
    return json.dumps([phase, *(config[part] for part in parts)], sort_keys=True, default=list)


def train_phase_two_arms(
    configs: Sequence[Mapping[str, Any]], dataset: Dataset, workdir: Path, folder: Path
) -> None:
    """Phase II of several arms, one pass through the frozen backbone per step for all of them.

    Args:
      configs: a whole config per arm, equal in `shared_settings`.
      dataset: to train on and validate with.
      workdir: of the phase-I run.
      folder: checkpoints and metrics of all arms go there; arm a's exits are a*k .. a*k + k - 1.

    Raises:
      ValueError: arms that cannot share.
      NonFiniteLossError: one of them diverged.
      FileNotFoundError: phase I has not run.
    """
    if len({shared_settings(config) for config in configs}) != 1:
        raise ValueError("these arms differ in more than their heads and loss; train them apart")
    if not all(can_share(config) for config in configs):
        raise ValueError("an arm that moves the backbone's statistics, or is judged by its best "
                         "epoch, cannot share the backbone; train it apart")  # fmt: skip
    classifier = _new_arms(configs, trained_phase_one(configs[0], dataset, workdir))
    objective = ArmsObjective(tuple(phase_two_objective(config) for config in configs))
    train_phase(
        "phase_two", configs[0], dataset, folder, classifier, objective, HEAD_PARAMETERS,
        meta={"arms": len(configs)},
    )  # fmt: skip


def load_arms(
    configs: Sequence[Mapping[str, Any]], dataset: Dataset, workdir: Path, folder: Path
) -> "ArmsClassifier":
    """The arms that `train_phase_two_arms` trained, after their last epoch, in inference mode."""
    classifier = _new_arms(configs, trained_phase_one(configs[0], dataset, workdir))
    restore_model(classifier, folder)
    classifier.eval()
    return classifier


def _new_arms(
    configs: Sequence[Mapping[str, Any]], classifier: MultiExitClassifier
) -> "ArmsClassifier":
    return ArmsClassifier([new_phase_two(config, classifier) for config in configs])


class StackedHeads(nnx.Module):
    """Heads of A arms as one module whose variables have a leading axis [A]."""

    def __init__(self, heads: Sequence[Heads]):
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(nnx.state(h) for h in heads))
        self.heads = nnx.merge(nnx.graphdef(heads[0]), stacked)

    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        """Logits [A, E, N, K] from the features of all exits, [N, width] each."""
        graphdef, state = nnx.split(self.heads)

        def one(state: nnx.State) -> tuple[jax.Array, nnx.State]:
            heads = nnx.merge(graphdef, state, copy=True)
            return run_heads(heads, features), nnx.state(heads)

        logits, state = jax.vmap(one)(state)
        nnx.update(self.heads, state)  # statistics of batch normalization, in train mode
        return logits

    def arm(self, index: int) -> Heads:
        """One arm's heads, by themselves."""
        graphdef, state = nnx.split(self.heads)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], state))


class ArmsClassifier(MultiExitClassifier):
    """Phase-II classifiers on one backbone as a single one, of A * k exits, arm after arm."""

    def __init__(self, arms: Sequence[MultiExitClassifier]):
        first = arms[0]
        groups: dict[Any, list[int]] = {}
        for index, arm in enumerate(arms):
            groups.setdefault(nnx.graphdef(arm.heads), []).append(index)
        # Of the stacked logits, group after group: the group, the place in it, and the arm.
        stacked_as = [(g, i, a) for g, m in enumerate(groups.values()) for i, a in enumerate(m)]
        order = [arm for _, _, arm in stacked_as]
        self.order = tuple(order.index(a) for a in range(len(arms)))
        self.places = tuple(stacked_as[at][:2] for at in self.order)
        stacked = nnx.List(
            [StackedHeads([arms[a].heads for a in members]) for members in groups.values()]
        )
        super().__init__(
            first.backbone,
            stacked,
            num_classes=first.num_classes,
            image_shape=first.image_shape,
            phase_one_heads=first.phase_one_heads,
        )

    def logits(self, features: tuple[jax.Array, ...]) -> jax.Array:
        """Logits [A * E, N, K] float32 from the features of all exits."""
        stacked = jnp.concatenate([heads(features) for heads in self.heads])
        in_order = stacked[jnp.array(self.order)]
        return in_order.reshape(-1, *in_order.shape[2:]).astype(jnp.float32)

    def arm(self, index: int) -> MultiExitClassifier:
        """One arm as an ordinary phase-II classifier, on the shared backbone."""
        group, place = self.places[index]
        return MultiExitClassifier(
            self.backbone,
            self.heads[group].arm(place),
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            phase_one_heads=self.phase_one_heads,
        )


@dataclasses.dataclass(frozen=True)
class ArmsObjective:
    """The sum of the arms' losses: no parameter trained is read by two arms.

    Attributes:
      arms: their objectives, in order.
    """

    arms: tuple[PhaseTwoObjective, ...]

    def set_mode(self, classifier: ArmsClassifier) -> None:
        """The heads train; the backbone is frozen."""
        classifier.train()
        freeze_backbone(classifier)

    def __call__(
        self, classifier: ArmsClassifier, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, ExitMetrics]:
        """See `Objective`; metrics are those of arm after arm, [A * E]."""
        features = jax.lax.stop_gradient(classifier.features(images))
        logits = classifier.logits(features)
        by_arm = logits.reshape(len(self.arms), -1, *logits.shape[1:])
        earlier = classifier.phase_one_logits(features)
        losses = [self._losses(group, by_arm, labels, earlier) for group in self._groups()]
        return jnp.concatenate(losses).sum(), exit_metrics(logits, labels)

    def _groups(self) -> list[list[int]]:
        """Indices of arms whose losses differ in numbers only."""
        groups: dict[PhaseTwoObjective, list[int]] = {}
        alike = {"alpha": 1.0, "temperature": 1.0}
        for index, arm in enumerate(self.arms):
            groups.setdefault(dataclasses.replace(arm, **alike), []).append(index)
        return list(groups.values())

    def _losses(
        self, group: list[int], by_arm: jax.Array, labels: jax.Array, earlier: jax.Array
    ) -> jax.Array:
        """[A'] losses of one group from all arms' logits [A, E, N, K]."""
        arms = [self.arms[index] for index in group]

        def loss(logits: jax.Array, alpha: jax.Array, temperature: jax.Array) -> jax.Array:
            teacher = logits[-1] if arms[0].teacher == "own_last_exit" else earlier
            return arms[0].loss(logits, labels, teacher, alpha, temperature)

        numbers = (jnp.array([getattr(arm, name) for arm in arms]) for name in _NUMBERS)
        return jax.vmap(loss)(by_arm[jnp.array(group)], *numbers)
