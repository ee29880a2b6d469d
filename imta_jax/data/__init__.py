"""Datasets: sources of images, and the pipelines that turn images into batches."""

from imta_jax.data.dataset import Dataset, dataset_info, load_dataset
from imta_jax.data.info import DatasetInfo
from imta_jax.data.pipeline.augmentation import EpochPlan, crop, epoch_plan
from imta_jax.data.pipeline.batch_indices import Shard
from imta_jax.data.pipeline.batches import (
    eval_batches,
    evaluation_images,
    resolve_host_pipeline,
    steps_per_epoch,
    train_batches,
)
from imta_jax.data.pipeline.encoded import EncodedImages
from imta_jax.data.pipeline.preprocessing import (
    NO_AUGMENTATION,
    PaddedCrop,
    Preprocessing,
    RandomAreaCrop,
    preprocessing_from,
)
from imta_jax.data.pipeline.tf_pipeline import HostPipeline
from imta_jax.data.source_validation import validate_split
from imta_jax.data.split import Split

__all__ = [
    "NO_AUGMENTATION",
    "Dataset",
    "DatasetInfo",
    "EncodedImages",
    "EpochPlan",
    "HostPipeline",
    "PaddedCrop",
    "Preprocessing",
    "RandomAreaCrop",
    "Shard",
    "Split",
    "crop",
    "dataset_info",
    "epoch_plan",
    "eval_batches",
    "evaluation_images",
    "load_dataset",
    "preprocessing_from",
    "resolve_host_pipeline",
    "steps_per_epoch",
    "train_batches",
    "validate_split",
]
