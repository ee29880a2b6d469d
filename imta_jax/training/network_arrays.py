"""Builds the network that a checkpoint describes, and fills it with arrays by name.

Needs no Orbax.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier, build_classifier, with_collaborative_heads
from imta_jax.training.network_record import import_registered
from imta_jax.training.state import fill_tree, named_arrays


class AnotherNetworkError(InputError):
    """The arrays of a checkpoint are not those of the network that it should fill."""


def empty_classifier(meta: Mapping[str, Any]) -> MultiExitClassifier:
    """The untrained network that a checkpoint's `meta` describes."""
    import_registered(meta)
    num_classes = len(meta["class_names"])
    classifier = build_classifier(
        meta["model"],
        num_classes=num_classes,
        image_shape=tuple(meta["image_shape"]),
        rngs=nnx.Rngs(0),
    )
    if meta["phase"] == "phase_two":
        classifier = with_collaborative_heads(
            classifier, meta["heads"], num_classes=num_classes, rngs=nnx.Rngs(0)
        )
    return classifier


def fill_named(classifier: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Fills a classifier in place from arrays that are named as in `state.named_arrays`.

    Raises:
      AnotherNetworkError: names or shapes differ; the message lists them.
    """
    variables = nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat))
    lines = list(name_differences(named_arrays(variables), arrays))
    if lines:
        raise AnotherNetworkError(
            f"these arrays are of another network ({len(lines)} differences); use those of this"
            " network:\n  " + "\n  ".join(lines[:20])
        )
    # One transfer: `jnp.asarray` would compile a program per shape.
    nnx.update(classifier, fill_tree(variables, jax.device_put(dict(arrays))))


def name_differences(expected: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterator[str]:
    """One line per array that is missing, superfluous or of another shape."""
    for name in sorted(expected.keys() - stored.keys()):
        yield f"not in the checkpoint: {name}"
    for name in sorted(stored.keys() - expected.keys()):
        yield f"not in this network: {name}"
    for name in sorted(expected.keys() & stored.keys()):
        expected_shape, stored_shape = tuple(expected[name].shape), tuple(stored[name].shape)
        if expected_shape != stored_shape:
            yield f"{name}: this network {expected_shape}, the checkpoint {stored_shape}"
