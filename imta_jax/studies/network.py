"""One phase-I network of a study and the arms that share it: trained, and judged arm by arm."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imta_jax.data import Dataset
from imta_jax.evaluation import Predictions
from imta_jax.evaluation.run import split_predictions
from imta_jax.models import MultiExitClassifier
from imta_jax.studies.variant_training import (
    ArmsClassifier,
    can_share,
    load_arms,
    shared_settings,
    train_phase_two_arms,
)
from imta_jax.studies.variants import Arm
from imta_jax.training import NonFiniteLossError, load_classifier, train_phase_one, train_phase_two
from imta_jax.training.phases import folder_is_finished

_log = logging.getLogger(__name__)

# Logits of several arms that are computed in one pass and held at a time: 1 GB of float32.
_MOST_LOGITS = 2**28


class Judged(NamedTuple):
    """What a trained arm said.

    Attributes:
      validation: logits [E, N, K] and labels of the validation images.
      test: of the test images.
      phase_two: the folder of its second phase, None without one.
      exits: which of the exits in that folder's metrics are the arm's.
    """

    validation: Predictions
    test: Predictions
    phase_two: Path | None
    exits: slice


# An arm, and what it said or why there is nothing: its loss was not finite.
Outcome = tuple[Arm, Judged | NonFiniteLossError]


@dataclasses.dataclass(frozen=True)
class SharedNetwork:
    """Arms that start from one phase-I network, and the seed they are trained with.

    Attributes:
      arms: one or more, equal in `Arm.phase_one_key`.
      seed: of all.
      dataset: that they train on.
      networks: the folder that holds them all.
    """

    arms: Sequence[Arm]
    seed: int
    dataset: Dataset
    networks: Path

    @property
    def folder(self) -> Path:
        """Where phase I and the second phases on it are kept."""
        first = self.arms[0]
        return (
            self.networks / f"{first.network}-{_digest(first.phase_one_key)}" / f"seed_{self.seed}"
        )

    def train_phase_one(self) -> None:
        """Trains the network unless it is trained; a NonFiniteLossError if it diverges."""
        config = self.arms[0].seeded(self.seed)
        if not folder_is_finished(config, "phase_one", self.folder / "phase_one"):
            train_phase_one(config, self.dataset, self.folder)

    def outcomes(self) -> Iterator[list[Outcome]]:
        """Trains the second phases and judges all arms; those trained together come together.

        Raises:
          FileNotFoundError: phase I has not run.
        """
        alone: list[Arm] = []
        together: dict[str, list[Arm]] = {}
        for arm in self.arms:
            if arm.config["phase_two"]["total_epochs"] == 0:
                yield [self._of_phase_one(arm)]
            elif can_share(arm.config):
                together.setdefault(shared_settings(arm.config), []).append(arm)
            else:
                alone.append(arm)
        for arms in together.values():
            yield self._sharing(arms)
        for arm in alone:
            yield [self._alone(arm)]

    def _of_phase_one(self, arm: Arm) -> Outcome:
        config = arm.seeded(self.seed)
        which = config["evaluation"]["checkpoint"]
        classifier, _ = load_classifier(self.folder / "phase_one", which)
        predictions = self._predictions(config, classifier)
        return arm, Judged(*predictions, None, slice(None))

    def _alone(self, arm: Arm) -> Outcome:
        config = arm.seeded(self.seed)
        folder = self._phase_two([arm])
        try:
            if not folder_is_finished(config, "phase_two", folder):
                train_phase_two(config, self.dataset, self.folder, folder)
        except NonFiniteLossError as error:
            return arm, error
        classifier, _ = load_classifier(folder, config["evaluation"]["checkpoint"])
        predictions = self._predictions(config, classifier)
        return arm, Judged(*predictions, folder, slice(None))

    def _sharing(self, arms: Sequence[Arm]) -> list[Outcome]:
        configs = [arm.seeded(self.seed) for arm in arms]
        folder = self._phase_two(arms)
        try:
            if not folder_is_finished(configs[0], "phase_two", folder):
                _log.info("study: %d second phases on one backbone", len(arms))
                train_phase_two_arms(configs, self.dataset, self.folder, folder)
        except NonFiniteLossError as error:
            if len(arms) == 1:
                return [(arms[0], error)]
            _log.warning("study: %s; training its %d arms one by one", error, len(arms))
            return [outcome for arm in arms for outcome in self._sharing([arm])]
        return list(self._judged_together(arms, folder))

    def _judged_together(self, arms: Sequence[Arm], folder: Path) -> Iterator[Outcome]:
        """Judges arms in as few passes over the images as memory allows."""
        configs = [arm.seeded(self.seed) for arm in arms]
        trained = load_arms(configs, self.dataset, self.folder, folder)
        exits = trained.num_exits
        longest = max(len(self.dataset.splits[name]) for name in ("validation", "test"))
        most = max(1, _MOST_LOGITS // (exits * longest * self.dataset.num_classes))
        for first in range(0, len(arms), most):
            part = range(first, min(first + most, len(arms)))
            several = ArmsClassifier([trained.arm(index) for index in part])
            pair = self._predictions(configs[0], several)
            for place, index in enumerate(part):
                own = (_of_arm(predictions, place, exits) for predictions in pair)
                in_metrics = slice(index * exits, (index + 1) * exits)
                yield arms[index], Judged(*own, folder, in_metrics)

    def _predictions(
        self, config: Mapping[str, Any], classifier: MultiExitClassifier
    ) -> tuple[Predictions, Predictions]:
        """Of the validation and of the test images."""
        validation, test = (
            split_predictions(config, self.dataset, classifier, split)
            for split in ("validation", "test")
        )
        return validation, test

    def _phase_two(self, arms: Sequence[Arm]) -> Path:
        parts = [(arm.config["phase_two"], arm.config["evaluation"]["checkpoint"]) for arm in arms]
        return self.folder / f"phase_two-{_digest(json.dumps(parts, sort_keys=True, default=list))}"


def _of_arm(predictions: Predictions, place: int, exits: int) -> Predictions:
    logits = predictions.logits[place * exits : (place + 1) * exits]
    return Predictions(np.ascontiguousarray(logits), predictions.labels)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:8]
