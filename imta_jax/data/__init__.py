"""Datasets: sources of images, and the pipelines that turn images into batches.

Names are imported at first use, so that an exported network reads image files without the code of
sources and training pipelines.
"""

from typing import TYPE_CHECKING

from imta_jax.runtime.lazy_imports import lazy_imports

if TYPE_CHECKING:
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
    from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform
    from imta_jax.data.pipeline.host_pipeline import HostPipeline
    from imta_jax.data.pipeline.preprocessing import (
        NO_AUGMENTATION,
        PaddedCrop,
        Preprocessing,
        RandomAreaCrop,
        preprocessing_from,
    )
    from imta_jax.data.source_validation import validate_split
    from imta_jax.data.sources.own import ImageSource
    from imta_jax.data.split import Split

__all__ = [
    "NO_AUGMENTATION",
    "Dataset",
    "DatasetInfo",
    "EncodedImages",
    "EpochPlan",
    "EvaluationTransform",
    "HostPipeline",
    "ImageSource",
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

_BY_MODULE = {
    "Dataset": "imta_jax.data.dataset",
    "DatasetInfo": "imta_jax.data.info",
    "EncodedImages": "imta_jax.data.pipeline.encoded",
    "EpochPlan": "imta_jax.data.pipeline.augmentation",
    "EvaluationTransform": "imta_jax.data.pipeline.evaluation_transform",
    "HostPipeline": "imta_jax.data.pipeline.host_pipeline",
    "ImageSource": "imta_jax.data.sources.own",
    "NO_AUGMENTATION": "imta_jax.data.pipeline.preprocessing",
    "PaddedCrop": "imta_jax.data.pipeline.preprocessing",
    "Preprocessing": "imta_jax.data.pipeline.preprocessing",
    "RandomAreaCrop": "imta_jax.data.pipeline.preprocessing",
    "Shard": "imta_jax.data.pipeline.batch_indices",
    "Split": "imta_jax.data.split",
    "crop": "imta_jax.data.pipeline.augmentation",
    "dataset_info": "imta_jax.data.dataset",
    "epoch_plan": "imta_jax.data.pipeline.augmentation",
    "eval_batches": "imta_jax.data.pipeline.batches",
    "evaluation_images": "imta_jax.data.pipeline.batches",
    "load_dataset": "imta_jax.data.dataset",
    "preprocessing_from": "imta_jax.data.pipeline.preprocessing",
    "resolve_host_pipeline": "imta_jax.data.pipeline.batches",
    "steps_per_epoch": "imta_jax.data.pipeline.batches",
    "train_batches": "imta_jax.data.pipeline.batches",
    "validate_split": "imta_jax.data.source_validation",
}

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
