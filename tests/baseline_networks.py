"""The baseline presets, and tiny networks of every baseline backbone, for tests."""

import functools
from pathlib import Path
from typing import Any

import jax
from abstract_networks import abstract
from flax import nnx
from ml_collections import ConfigDict

from imta_jax.models import NETWORK_PRESETS, MultiExitClassifier, build_classifier
from imta_jax.models.costs import ExitCosts, exit_costs
from imta_jax.nn.batch_norm import BatchNorm

PRESETS = {name: f for name, f in NETWORK_PRESETS.items() if f["backbone"] != "msdnet"}

# Small feature maps keep tests fast.
IMAGE_SHAPE, CLASSES = (8, 8, 1), 3
TINY = {
    "resnet": {"stem": "cifar", "channels": 4, "depths": (1, 1, 1), "exits": (1, 2)},
    "densenet": {
        "stem": "cifar",
        "channels": 4,
        "growth_rate": 3,
        "depths": (2, 2),
        "bottleneck": True,
        "reduction": 0.5,
        "exits": (1, 3),
    },
    "hydranet": {"channels": 2, "depths": (1, 1, 1), "branches": 4, "active_branches": 2},
}


@functools.cache
def preset_costs(preset: str, num_classes: int | None = None) -> ExitCosts:
    """Costs of a preset, by default with the classes of its dataset."""
    fields = PRESETS[preset]
    for_imagenet = fields.get("stem") == "imagenet" or fields["backbone"] == "googlenet"
    shape, classes = ((224, 224, 3), 1000) if for_imagenet else ((32, 32, 3), 10)
    return exit_costs(abstract(fields, num_classes or classes, shape))


def tiny(backbone: str, **changes: Any) -> MultiExitClassifier:
    """A tiny network in eval mode, whose batch statistics are not those of initialization."""
    fields = {"backbone": backbone} | TINY[backbone] | changes
    network = build_classifier(
        fields, num_classes=CLASSES, image_shape=IMAGE_SHAPE, rngs=nnx.Rngs(0)
    )
    for _, norm in nnx.iter_graph(network):
        if isinstance(norm, BatchNorm):
            norm.mean[...] = norm.mean[...] - 0.1  # Keeps some values above zero at every ReLU.
            norm.var[...] = norm.var[...] * 1.5
    network.eval()
    return network


def images(count: int = 4, seed: int = 0) -> jax.Array:
    """Normalized images [N, 8, 8, 1] for a tiny network."""
    return jax.random.normal(jax.random.key(seed), (count, *IMAGE_SHAPE))


@nnx.jit
def jitted_logits(network: MultiExitClassifier, images: jax.Array) -> jax.Array:
    """Logits [E, N, K] of all exits."""
    return network(images)


def baseline_config(source: Path | str, preset: str, **changes: Any) -> ConfigDict:
    """The quickstart's baseline config with another network, for the dataset of `tiny_run`."""
    from configs import common, quickstart

    config = quickstart.get_config("baseline")
    config.model = common.network(preset)
    config.model.update(changes)
    config.data.update(source=str(source), validation_examples=24, pipeline="numpy", crop_padding=2)
    config.phase_one.update(total_epochs=1, batch_size=16, learning_rate=0.05)
    config.evaluation.update(batch_size=16)
    return config
