"""Variants that share one phase-I network and seed: training and evaluation."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imta_jax.config import RunConfig
from imta_jax.data import Dataset
from imta_jax.evaluation import Predictions
from imta_jax.evaluation.collect import split_predictions
from imta_jax.models import MultiExitClassifier
from imta_jax.studies.joint_classifier import JointClassifier
from imta_jax.studies.joint_phase_two import (
    can_train_jointly,
    joint_training_key,
    load_joint_classifier,
    train_phase_two_jointly,
)
from imta_jax.studies.variants import Variant, key_fields
from imta_jax.training import NonFiniteLossError, load_classifier, train_phase_one, train_phase_two
from imta_jax.training.phases import folder_is_finished

_log = logging.getLogger(__name__)

# Limit on the logits of several variants that one pass computes: 1 GB of float32.
_MAX_LOGITS = 2**28


class VariantPredictions(NamedTuple):
    """Predictions of a trained variant.

    Attributes:
      validation: logits [E, N, K] and labels of the validation images.
      test: logits [E, N, K] and labels of the test images.
      phase_two: folder of its phase II, None without one.
      exits: its exits among those in the metrics of that folder.
    """

    validation: Predictions
    test: Predictions
    phase_two: Path | None
    exits: slice


# A variant with its predictions, or with the error that ended its training.
Outcome = tuple[Variant, VariantPredictions | NonFiniteLossError]


@dataclasses.dataclass(frozen=True)
class PhaseOneGroup:
    """Variants that start from one phase-I network.

    Attributes:
      variants: one or more, equal in `Variant.phase_one_key`.
      seed: seed of all of them.
      dataset: dataset that they train on.
      networks: folder of the networks of all groups.
    """

    variants: Sequence[Variant]
    seed: int
    dataset: Dataset
    networks: Path

    @property
    def folder(self) -> Path:
        """Folder of phase I and of the second phases that start from it."""
        first = self.variants[0]
        network = f"{first.network}-{_digest(first.phase_one_key)}"
        return self.networks / network / f"seed_{self.seed}"

    def train_phase_one(self) -> None:
        """Trains the network unless it is trained.

        Raises:
          NonFiniteLossError: the loss is not finite.
        """
        config = self.variants[0].with_seed(self.seed)
        if not folder_is_finished(config, "phase_one", self.folder / "phase_one"):
            train_phase_one(config, self.dataset, self.folder)

    def train_and_evaluate(self) -> Iterator[list[Outcome]]:
        """Trains phase II of all variants and evaluates them.

        Yields:
          The outcomes of variants that were trained together.

        Raises:
          FileNotFoundError: phase I has not been trained.
        """
        separate: list[Variant] = []
        joint: dict[str, list[Variant]] = {}
        for variant in self.variants:
            if variant.config.phase_two.total_epochs == 0:
                yield [self._evaluate_phase_one(variant)]
            elif can_train_jointly(variant.config):
                joint.setdefault(joint_training_key(variant.config), []).append(variant)
            else:
                separate.append(variant)
        for variants in joint.values():
            yield self._run_jointly(variants)
        for variant in separate:
            yield [self._run_separately(variant)]

    def _evaluate_phase_one(self, variant: Variant) -> Outcome:
        config = variant.with_seed(self.seed)
        classifier, _ = load_classifier(self.folder / "phase_one", config.evaluation.checkpoint)
        predictions = self._predictions(config, classifier)
        return variant, VariantPredictions(*predictions, None, slice(None))

    def _run_separately(self, variant: Variant) -> Outcome:
        config = variant.with_seed(self.seed)
        folder = self._phase_two_folder([variant])
        try:
            if not folder_is_finished(config, "phase_two", folder):
                train_phase_two(config, self.dataset, self.folder, folder)
        except NonFiniteLossError as error:
            return variant, error
        classifier, _ = load_classifier(folder, config.evaluation.checkpoint)
        predictions = self._predictions(config, classifier)
        return variant, VariantPredictions(*predictions, folder, slice(None))

    def _run_jointly(self, variants: Sequence[Variant]) -> list[Outcome]:
        configs = [variant.with_seed(self.seed) for variant in variants]
        folder = self._phase_two_folder(variants)
        try:
            if not folder_is_finished(configs[0], "phase_two", folder):
                _log.info("study: joint phase II of %s", ", ".join(v.name for v in variants))
                train_phase_two_jointly(configs, self.dataset, self.folder, folder)
        except NonFiniteLossError as error:
            if len(variants) == 1:
                return [(variants[0], error)]
            _log.warning("study: %s; training its %d variants one by one", error, len(variants))
            return [outcome for variant in variants for outcome in self._run_jointly([variant])]
        return list(self._evaluate_jointly(variants, folder))

    def _evaluate_jointly(self, variants: Sequence[Variant], folder: Path) -> Iterator[Outcome]:
        """Evaluates variants in as few passes over the images as `_MAX_LOGITS` allows."""
        configs = [variant.with_seed(self.seed) for variant in variants]
        trained = load_joint_classifier(configs, self.dataset, self.folder, folder)
        exits = trained.num_exits
        images = max(len(self.dataset.splits[name]) for name in ("validation", "test"))
        per_pass = max(1, _MAX_LOGITS // (exits * images * self.dataset.num_classes))
        for first in range(0, len(variants), per_pass):
            indices = range(first, min(first + per_pass, len(variants)))
            classifier = JointClassifier([trained.variant(index) for index in indices])
            pair = self._predictions(configs[0], classifier)
            for position, index in enumerate(indices):
                validation, test = (_of_variant(split, position, exits) for split in pair)
                in_metrics = slice(index * exits, (index + 1) * exits)
                predictions = VariantPredictions(validation, test, folder, in_metrics)
                yield variants[index], predictions

    def _predictions(
        self, config: RunConfig, classifier: MultiExitClassifier
    ) -> tuple[Predictions, Predictions]:
        """Predictions on the validation and on the test images."""
        validation, test = (
            split_predictions(config, self.dataset, classifier, split)
            for split in ("validation", "test")
        )
        return validation, test

    def _phase_two_folder(self, variants: Sequence[Variant]) -> Path:
        configs = [variant.config for variant in variants]
        settings = [(key_fields(c.phase_two), c.evaluation.checkpoint) for c in configs]
        return self.folder / f"phase_two-{_digest(json.dumps(settings, sort_keys=True))}"


def _of_variant(predictions: Predictions, position: int, exits: int) -> Predictions:
    logits = predictions.logits[position * exits : (position + 1) * exits]
    return Predictions(np.ascontiguousarray(logits), predictions.labels)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:8]
