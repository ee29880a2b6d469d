"""Audits: a share of the images also runs to the last exit, and its label is compared.

Predictions do not change. The logits of all exits of audited images also give new thresholds that
restore the exit fractions of validation after a drift, without labels.
"""

import math
import threading
from collections import deque
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Shaped

from imta_jax.errors import InputError
from imta_jax.evaluation.array_like import ArrayLike
from imta_jax.evaluation.predictions import confidence
from imta_jax.evaluation.thresholds import exit_of, thresholds_for_quota
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.engine.staged_rule import StagedRule

_TRUNCATED = -1  # label of an image that left because of a deadline


class AuditReport(NamedTuple):
    """State of an `Audit`. `sampled` is the sum of `audited`, `waiting` and `skipped`.

    Attributes:
      sampled: images drawn.
      audited: images that ran to the last exit.
      waiting: images that the next `run` audits.
      skipped: images drawn while `max_waiting` images waited, which are not audited.
      compared: audited images that left by the exit rule.
      agreement: fraction of these with the label of the last exit; NaN without any.
    """

    sampled: int
    audited: int
    waiting: int
    skipped: int
    compared: int
    agreement: float


class NewThresholds(NamedTuple):
    """Thresholds chosen on audited images.

    Attributes:
      thresholds: [E], for `AdaptiveClassifier.with_thresholds`.
      exit_fractions: [E], fraction of the audited images per exit under these thresholds.
      mean_macs: multiply-adds per audited image under these thresholds.
      num_images: audited images that were used.
    """

    thresholds: Float32[np.ndarray, " E"]
    exit_fractions: Float64[np.ndarray, " E"]
    mean_macs: float
    num_images: int


class Audit:
    """Runs a seeded share of images to the last exit. Thread-safe.

    Args:
      classifier: classifier whose predictions are audited.
      share: probability that an image is audited, 0 to 1.
      seed: seed of the draw. An equal seed draws the same images in the same order.
      batch_size: images per program; one program is compiled.
      max_waiting: images that may wait for `run`.
      max_kept: latest audited images that `new_thresholds` uses.

    Raises:
      ValueError: a share outside 0 to 1.
    """

    def __init__(
        self,
        classifier: AdaptiveClassifier,
        *,
        share: float = 0.01,
        seed: int = 0,
        batch_size: int = 32,
        max_waiting: int = 1024,
        max_kept: int = 5000,
    ):
        if not 0 <= share <= 1:
            raise InputError(f"share must be a fraction from 0 to 1; found {share}")
        self.share, self._classifier = share, classifier
        self._batch_size, self._max_waiting = batch_size, max_waiting
        self._generator = np.random.default_rng(seed)
        self._lock, self._run_lock = threading.Lock(), threading.Lock()
        self._waiting: deque[tuple[np.ndarray, int]] = deque()
        self._scores: deque[Float32[np.ndarray, " E"]] = deque(maxlen=max_kept)
        self._running = 0  # images in the batch that `run` computes
        self._sampled = self._skipped = self._audited = self._compared = self._agreed = 0

    def observe(
        self,
        images: Shaped[np.ndarray, "n H W C"],
        labels: Int[np.ndarray, " n"],
        truncated: Bool[np.ndarray, " n"] | None = None,
    ) -> None:
        """Draws images to audit. Computes nothing.

        Args:
          images: as given to the classifier.
          labels: predicted for them.
          truncated: whether the image left because of a deadline. Its label is not compared.
        """
        early = np.zeros(len(labels), bool) if truncated is None else truncated
        with self._lock:
            for i in np.flatnonzero(self._generator.random(len(labels)) < self.share):
                self._sampled += 1
                if len(self._waiting) >= self._max_waiting:
                    self._skipped += 1
                else:
                    label = _TRUNCATED if early[i] else int(labels[i])
                    self._waiting.append((np.array(images[i]), label))

    def run(self) -> int:
        """Audits the images that wait; returns their number.

        It takes the time of the full network, so call it from a thread of its own.
        """
        count = 0
        with self._run_lock:
            while batch := self._take():
                images, labels = np.stack([image for image, _ in batch]), [x for _, x in batch]
                padding = self._batch_size - len(batch)
                padded = np.concatenate([images, np.repeat(images[:1], padding, axis=0)])
                logits = self._classifier.logits(padded)[:, : len(batch)]
                self._record(logits, np.asarray(labels))
                count += len(batch)
        return count

    def report(self) -> AuditReport:
        """Returns the state so far."""
        with self._lock:
            agreement = self._agreed / self._compared if self._compared else math.nan
            waiting = len(self._waiting) + self._running
            return AuditReport(
                self._sampled, self._audited, waiting, self._skipped, self._compared, agreement
            )

    def new_thresholds(self, exit_fractions: ArrayLike) -> NewThresholds:
        """Thresholds at which the latest audited images leave in given fractions.

        With the exit fractions of validation, the mean cost becomes that of validation again, up to
        the sampling error of the audited images. Accuracy may still have changed.

        Args:
          exit_fractions: [E], as `DriftMonitor` takes.

        Raises:
          ValueError: no image was audited, or fractions for another number of exits.
        """
        with self._lock:
            scores = np.array(self._scores, np.float32).T
        if not scores.size:
            raise InputError("0 images were audited; expected some hundreds: call run() first")
        thresholds = thresholds_for_quota(scores, exit_fractions)
        exits, macs = exit_of(scores, thresholds), self._classifier.macs
        fractions = np.bincount(exits, minlength=len(macs)) / len(exits)
        return NewThresholds(thresholds, fractions, float(macs[exits].mean()), len(exits))

    def _take(self) -> list[tuple[np.ndarray, int]]:
        with self._lock:
            self._running = min(self._batch_size, len(self._waiting))
            return [self._waiting.popleft() for _ in range(self._running)]

    def _record(self, logits: Float32[np.ndarray, "E N K"], labels: Int[np.ndarray, " N"]) -> None:
        scores = _scores(logits, self._classifier.network.rule)
        by_rule = labels != _TRUNCATED
        with self._lock:
            self._running = 0
            self._audited += len(labels)
            self._compared += int(by_rule.sum())
            self._agreed += int((logits[-1].argmax(axis=-1) == labels)[by_rule].sum())
            self._scores.extend(scores.T)


def _scores(
    logits: Float32[np.ndarray, "E N K"], rule: StagedRule | None
) -> Float32[np.ndarray, "E N"]:
    """Scores of the exit rule at each exit."""
    if rule is None:
        return confidence(logits)
    scores, carry = [], ()
    for score_at_exit, exit_logits in zip(rule.scores, logits, strict=True):
        score, carry = score_at_exit(jnp.asarray(exit_logits), carry)
        scores.append(np.asarray(score))
    return np.stack(scores)
