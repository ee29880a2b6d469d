"""Trains phase II of several variants at once, on one pass through the frozen backbone.

Phase II differs only in the heads (paper Sec. 4). Variants that start from the same phase-I network
can therefore share its features, the most expensive part of a step. Each variant sees the same
batches in the same order as if it were trained alone, and gets the same updates.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imta_jax.config import RunConfig
from imta_jax.data import Dataset
from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.studies.joint_classifier import JointClassifier
from imta_jax.training.checkpoint_reading import restore_model
from imta_jax.training.objectives import (
    HEAD_PARAMETERS,
    ExitMetrics,
    PhaseTwoObjective,
    exit_metrics,
    freeze_backbone,
)
from imta_jax.training.optimizer import is_elementwise
from imta_jax.training.phases import train_phase, trained_phase_one
from imta_jax.training.setup import new_phase_two, phase_two_objective
from imta_jax.types import Labels

# Fields of phase II, in addition to those of the loss, in which joint variants may differ.
_HEAD_FIELDS = ("transfer", "transfer_options", "stop_gradient", "start")
# Fields of the loss that are mapped over. Variants that differ in other fields are another group.
_MAPPED_FIELDS = ("alpha", "temperature")


def can_train_jointly(config: RunConfig) -> bool:
    """Whether a variant can share a backbone: it leaves the backbone unchanged.

    A variant that is evaluated at its best epoch needs checkpoints of its own. Losses other than
    the default are not joined, nor are optimizers whose update of one variant's parameters depends
    on those of another.
    """
    phase = config.phase_two
    return (
        phase.backbone_statistics == "frozen"
        and isinstance(phase_two_objective(config), PhaseTwoObjective)
        and config.evaluation.checkpoint == "last"
        and is_elementwise(phase)
        and not (phase.gradient_clip_norm or phase.freeze or phase.early_stopping_epochs)
    )


def joint_training_key(config: RunConfig) -> str:
    """A string that is equal for configs that may share a backbone in phase II."""
    free = {*_HEAD_FIELDS, *(field.name for field in dataclasses.fields(PhaseTwoObjective))}
    sections = config.to_dict()
    phase = {name: value for name, value in sections["phase_two"].items() if name not in free}
    shared = ("seed", "data", "model", "phase_one", "mesh")
    return json.dumps([phase, *(sections[name] for name in shared)], sort_keys=True)


def train_phase_two_jointly(
    configs: Sequence[RunConfig], dataset: Dataset, workdir: Path, folder: Path
) -> None:
    """Trains phase II of several variants, with one pass through the backbone per step.

    Args:
      configs: one config per variant, equal in `joint_training_key`.
      dataset: dataset to train on and to validate with.
      workdir: folder of the phase-I run.
      folder: folder of checkpoints and metrics. Exit e of variant v is exit v * E + e there.

    Raises:
      ValueError: variants that cannot share a backbone.
      NonFiniteLossError: the loss of one of them is not finite.
      FileNotFoundError: phase I has not been trained.
    """
    if len({joint_training_key(config) for config in configs}) != 1:
        raise InputError(
            "variants differ in more than phase-II heads and loss; train them separately"
        )
    if not all(can_train_jointly(config) for config in configs):
        raise InputError(
            'joint training needs phase_two.backbone_statistics="frozen", the default '
            "phase_two.objective, an elementwise phase_two.optimizer and "
            'evaluation.checkpoint="last"; train the other variants separately'
        )
    classifier = _new_joint_classifier(configs, trained_phase_one(configs[0], dataset, workdir))
    # All are of the default kind, as `can_train_jointly` checks.
    objectives: Any = tuple(phase_two_objective(config) for config in configs)
    objective = JointObjective(objectives)
    train_phase(
        "phase_two",
        configs[0],
        dataset,
        folder,
        classifier,
        objective,
        HEAD_PARAMETERS,
        meta={"arms": len(configs)},
    )


def load_joint_classifier(
    configs: Sequence[RunConfig], dataset: Dataset, workdir: Path, folder: Path
) -> JointClassifier:
    """Loads what `train_phase_two_jointly` trained, after its last epoch, in inference mode."""
    classifier = _new_joint_classifier(configs, trained_phase_one(configs[0], dataset, workdir))
    restore_model(classifier, folder)
    classifier.eval()
    return classifier


def _new_joint_classifier(
    configs: Sequence[RunConfig], classifier: MultiExitClassifier
) -> JointClassifier:
    return JointClassifier([new_phase_two(config, classifier) for config in configs])


@dataclasses.dataclass(frozen=True)
class JointObjective:
    """The sum of the variants' losses; no trainable parameter is shared by two variants.

    Attributes:
      objectives: phase-II objectives, in variant order.
    """

    objectives: tuple[PhaseTwoObjective, ...]

    def set_mode(self, classifier: MultiExitClassifier) -> None:
        """Sets the heads to training mode and freezes the backbone."""
        classifier.train()
        freeze_backbone(classifier)

    def __call__(
        self,
        classifier: MultiExitClassifier,
        images: Float[Array, "N H W C"],
        labels: Labels,
    ) -> tuple[Float[Array, ""], ExitMetrics]:
        """See `Objective`. The metrics have V * E exits, in variant order."""
        features = jax.lax.stop_gradient(classifier.features(images))
        logits = classifier.logits(features)
        by_variant = logits.reshape(len(self.objectives), -1, *logits.shape[1:])
        earlier = classifier.phase_one_logits(features)
        losses = [self._losses(group, by_variant, labels, earlier) for group in self._groups()]
        return jnp.concatenate(losses).sum(), exit_metrics(logits, labels)

    def _groups(self) -> list[list[int]]:
        """Indices of variants whose losses differ only in `_MAPPED_FIELDS`."""
        groups: dict[PhaseTwoObjective, list[int]] = {}
        for index, objective in enumerate(self.objectives):
            key = dataclasses.replace(objective, alpha=1.0, temperature=1.0)
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def _losses(
        self,
        group: list[int],
        by_variant: Float[Array, "V E N K"],
        labels: Labels,
        earlier: Float[Array, "N K"],
    ) -> Float[Array, " G"]:
        """The losses of a group of G variants, from the logits of all variants.

        Args:
          group: indices of variants.
          by_variant: logits.
          labels: see `Objective`.
          earlier: logits of the last exit with the phase-I heads.
        """
        objectives = [self.objectives[index] for index in group]

        def loss(logits: jax.Array, alpha: jax.Array, temperature: jax.Array) -> jax.Array:
            teacher = logits[-1] if objectives[0].teacher == "own_last_exit" else earlier
            return objectives[0].loss(logits, labels, teacher, alpha, temperature)

        mapped = (jnp.array([getattr(o, name) for o in objectives]) for name in _MAPPED_FIELDS)
        return jax.vmap(loss)(by_variant[jnp.array(group)], *mapped)
