"""Recorded reference numbers (tests/data) and the networks that they were recorded from.

Arrays are in PyTorch's names and layouts: images and maps NCHW, kernels OIHW, linear (out, in).
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from abstract_networks import abstract
from flax import nnx

from imta_jax.interop import load_published_weights, published_slots
from imta_jax.models import MultiExitClassifier, build_classifier, with_collaborative_heads
from imta_jax.models.costs import ExitCosts, exit_costs

DATA = Path(__file__).parent / "data"
INPUTS = ("w/", "x", "labels")

# A network of two exits and two scales, for what needs no recorded numbers.
TINY = MappingProxyType(
    {
        "stem": "cifar",
        "num_exits": 2,
        "base": 1,
        "step": 1,
        "step_mode": "even",
        "channels": 4,
        "growth_rate": 2,
        "growth_factors": (1, 2),
        "bottleneck_factors": (1, 2),
        "prune": "max",
        "reduction": 0.5,
    }
)


@functools.cache
def arrays(name: str) -> Mapping[str, np.ndarray]:
    """All arrays of a recorded file."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        return MappingProxyType(dict(archive))


def outputs(name: str) -> list[str]:
    """Names of the arrays that are results, and not weights, images or labels."""
    return [key for key in arrays(name) if not key.startswith(INPUTS)]


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    """The JSON file of a recorded case: arguments of the network and recorded numbers."""
    return json.loads((DATA / f"{name}.json").read_text())


def images(name: str) -> jax.Array:
    """The recorded images as [N, H, W, C]."""
    return jnp.asarray(arrays(name)["x"].transpose(0, 2, 3, 1))


def model_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Our `model` fields from the reference code's arguments."""
    return {
        "stem": "imagenet" if args["data"] == "ImageNet" else "cifar",
        "num_exits": args["nBlocks"],
        "base": args["base"],
        "step": args["step"],
        "step_mode": args["stepmode"],
        "channels": args["nChannels"],
        "growth_rate": args["growthRate"],
        "growth_factors": tuple(args["grFactor"]),
        "bottleneck_factors": tuple(args["bnFactor"]),
        "prune": args["prune"],
        "reduction": args["reduction"],
    }


def image_shape(stem: str) -> tuple[int, int, int]:
    """(H, W, C) that a stem was published for."""
    return (224, 224, 3) if stem == "imagenet" else (32, 32, 3)


def untrained(fields: Mapping[str, Any], *, seed: int = 0, **arguments: Any) -> MultiExitClassifier:
    """A phase-I classifier; by default with 10 classes and the image shape of the stem."""
    defaults = {"num_classes": 10, "image_shape": image_shape(fields.get("stem", "cifar"))}
    return build_classifier(fields, **(defaults | arguments), rngs=nnx.Rngs(seed))


def phase_one_network(name: str) -> MultiExitClassifier:
    """The recorded phase-I network, with its recorded weights."""
    args = metadata(name)["args"]
    network = untrained(model_fields(args), num_classes=args["num_classes"])
    load_published_weights(network, below(name, "w/"))
    return network


def phase_two_network(stop_gradient: bool) -> MultiExitClassifier:
    """The recorded phase-II network: the small network's weights and the new heads'."""
    heads = {"transfer": "linear", "stop_gradient": stop_gradient, "start": "fresh"}
    network = with_collaborative_heads(
        untrained(model_fields(metadata("phase2")["args"])), heads, num_classes=10, rngs=nnx.Rngs(1)
    )
    earlier = {f"net.{key}": value for key, value in below("msdnet_cifar_small", "w/").items()}
    load_published_weights(network, earlier | below("phase2", "w/"))
    return network


def below(name: str, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a file whose names start with `prefix`, which is cut off."""
    actual = arrays(name).items()
    return {key.removeprefix(prefix): value for key, value in actual if key.startswith(prefix)}


def published_arrays(classifier: MultiExitClassifier) -> dict[str, np.ndarray]:
    """A classifier's arrays, or gradients put in their place, by published name and layout."""
    return {
        name: np.asarray(slot.variable[...]).transpose(np.argsort(slot.axes))
        for name, slot in published_slots(classifier).items()
    }


def published_gradients(
    classifier: MultiExitClassifier, gradients: nnx.State, wrt: nnx.filterlib.Filter
) -> dict[str, np.ndarray]:
    """Gradients with respect to the variables that `wrt` selects, by published name and layout."""
    graphdef, parameters, rest = nnx.split(classifier, wrt, ...)
    blank = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), rest)
    assert jax.tree.structure(parameters) == jax.tree.structure(gradients)
    filled = published_arrays(nnx.merge(graphdef, gradients, blank, copy=True))
    return {name: value for name, value in filled.items() if not np.isnan(value).all()}


def counted(fields: Mapping[str, Any], num_classes: int) -> MultiExitClassifier:
    """A phase-I network of shapes, on images of the published size."""
    return abstract(fields, num_classes, image_shape(fields["stem"]))


@functools.cache
def _costs(fields: tuple[tuple[str, Any], ...], num_classes: int) -> ExitCosts:
    return exit_costs(counted(dict(fields), num_classes))


def costs(fields: Mapping[str, Any], num_classes: int) -> ExitCosts:
    """Costs of such a network, counted at most once in a test run."""
    plain = {name: value for name, value in fields.items() if name != "backbone"}
    return _costs(tuple(sorted(plain.items())), num_classes)
