"""Where images come from and how they become batches; NumPy, and TensorFlow where it is needed."""

from imta_jax.data.augmentation import EpochPlan, augment, epoch_plan
from imta_jax.data.batches import eval_batches, steps_per_epoch, train_batches
from imta_jax.data.dataset import Dataset, Split, load_dataset
from imta_jax.data.raw import validate_split

__all__ = [
    "Dataset",
    "EpochPlan",
    "Split",
    "augment",
    "epoch_plan",
    "eval_batches",
    "load_dataset",
    "steps_per_epoch",
    "train_batches",
    "validate_split",
]
