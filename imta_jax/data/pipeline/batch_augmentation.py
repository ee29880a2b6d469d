"""Augmentation of batches within the compiled training step.

RandAugment, then random erasing, then mixup or cutmix, after the crop and the flip of the input
pipeline. It takes uint8 batches of any pipeline, so that on-device and streamed data give the same
images. Random numbers depend on the seed, the phase and the number of the step: a resumed run and a
run on another number of devices see the same images.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int

from imta_jax.config import PhaseConfig
from imta_jax.data.pipeline.mixing import mix_images
from imta_jax.data.pipeline.randaugment import randaugment
from imta_jax.data.pipeline.random_erasing import random_erasing
from imta_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class BatchAugmentation:
    """The augmentation of a phase.

    Attributes:
      settings: config section of the phase.
      num_classes: number of classes K.
      seed: seed of the random numbers, which differs between phases.
    """

    settings: PhaseConfig
    num_classes: int
    seed: int

    @property
    def is_identity(self) -> bool:
        """Whether batches are unchanged."""
        settings = self.settings
        image_operations = settings.randaugment_operations or settings.random_erasing
        return not image_operations and not settings.mixes_labels

    def describe(self) -> str:
        """One sentence, for reports; "" for the identity."""
        phase, parts = self.settings, []
        if phase.randaugment_operations:
            parts.append(
                f"RandAugment ({phase.randaugment_operations} operations of magnitude "
                f"{phase.randaugment_magnitude:g} of 30)"
            )
        if phase.random_erasing:
            parts.append(f"random erasing (probability {phase.random_erasing:g})")
        mixing = {"mixup": phase.mixup_alpha, "cutmix": phase.cutmix_alpha}
        used = [f"{name} (alpha {alpha:g})" for name, alpha in mixing.items() if alpha]
        return ", ".join([*parts, *([" or ".join(used)] if used else [])])

    def __call__(self, step: Int[Array, ""] | int, batch: Batch) -> Batch:
        """Augments the batch of a step.

        Args:
          step: number of the step in the phase, from 0.
          batch: without padding, images uint8 and labels int32.

        Returns:
          The batch. With mixup or cutmix, labels are the probability of each class.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        for_operations, for_erasing, for_mixing = jax.random.split(key, 3)
        images: Any = batch.images
        labels: Any = batch.labels
        phase = self.settings
        if phase.randaugment_operations:
            images = randaugment(
                for_operations,
                images,
                operations=phase.randaugment_operations,
                magnitude=phase.randaugment_magnitude,
            )
        if phase.random_erasing:
            images = random_erasing(for_erasing, images, phase.random_erasing)
        if phase.mixes_labels:
            images, labels = mix_images(
                for_mixing,
                images,
                labels,
                mixup_alpha=phase.mixup_alpha,
                cutmix_alpha=phase.cutmix_alpha,
                num_classes=self.num_classes,
            )
        return batch._replace(images=images, labels=labels)
