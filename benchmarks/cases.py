"""Cases that the step benchmarks time, and the inputs and constants that all of them share."""

import dataclasses
from typing import Any

import numpy as np

from configs import cifar10, imagenet
from imta_jax.config import RunConfig
from imta_jax.data import DatasetInfo
from imta_jax.models import resolve_model_config

Arrays = dict[str, np.ndarray]
Losses = list[float]

SEED, BATCHES = 0, 4
# A low learning rate keeps the loss finite over many steps on noise.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
KINDS = ("forward", "phase_one", "phase_two")
DEVICES = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # device -> name of JAX's backend


@dataclasses.dataclass(frozen=True)
class Case:
    """One network, batch size and precision on one device.

    Attributes:
      network: a preset of `imta_jax.models`.
      batch_size: images per step.
      precision: one of `PRECISIONS`.
      device: one of `DEVICES`.
      threads: number of CPU threads.
    """

    network: str
    batch_size: int
    precision: str = "float32"
    device: str = "cpu"
    threads: int = 2

    @property
    def dataset_info(self) -> DatasetInfo:
        """The network's dataset."""
        if self.network.startswith("imagenet"):
            return DatasetInfo("imagenet2012", 1000, (224, 224, 3))
        return DatasetInfo("cifar10", 10, (32, 32, 3))

    @property
    def name(self) -> str:
        """A short name for tables."""
        return f"{self.network}, {self.batch_size}, {self.precision}"


def case_config(network: str) -> RunConfig:
    """The config that trains a network preset with the paper's method."""
    config = (imagenet if network.startswith("imagenet") else cifar10).get_config()
    config.model.preset = network
    return RunConfig.from_mapping(config)


def model_fields(network: str) -> dict[str, Any]:
    """All `config.model` fields of a network preset, as `plan_network` takes them."""
    return resolve_model_config(case_config(network).model)


def draw_batches(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Batches of noise: uint8 images [S, N, H, W, C] and int32 labels [S, N]."""
    shape, generator = (BATCHES, case.batch_size), np.random.default_rng(SEED)
    info = case.dataset_info
    images = generator.integers(0, 256, (*shape, *info.image_shape), np.uint8)
    return images, generator.integers(0, info.num_classes, shape, np.int32)


def pixel_statistics(case: Case) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation per channel for the normalization."""
    channels = case.dataset_info.image_shape[-1]
    return {"mean": (0.5,) * channels, "std": (0.25,) * channels}
