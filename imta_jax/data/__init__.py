"""Where images come from and how they become batches; NumPy, and TensorFlow where it is needed."""

from imta_jax.data.dataset import Dataset, Split, load_dataset
from imta_jax.data.info import DataFacts, data_facts
from imta_jax.data.pipeline.augmentation import EpochPlan, crop, epoch_plan
from imta_jax.data.pipeline.batch_indices import Share
from imta_jax.data.pipeline.batches import (
    eval_batches,
    host_pipeline,
    judged_images,
    steps_per_epoch,
    train_batches,
)
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.preprocessing import (
    AS_THEY_ARE,
    PaddedCrop,
    Preprocessing,
    RandomAreaCrop,
    preprocessing_from,
)
from imta_jax.data.pipeline.tf_pipeline import HostPipeline
from imta_jax.data.source_validation import validate_split

__all__ = [
    "AS_THEY_ARE",
    "DataFacts",
    "Dataset",
    "EncodedImages",
    "EpochPlan",
    "HostPipeline",
    "PaddedCrop",
    "Preprocessing",
    "RandomAreaCrop",
    "Share",
    "Split",
    "crop",
    "data_facts",
    "epoch_plan",
    "eval_batches",
    "host_pipeline",
    "judged_images",
    "load_dataset",
    "preprocessing_from",
    "steps_per_epoch",
    "train_batches",
    "validate_split",
]
