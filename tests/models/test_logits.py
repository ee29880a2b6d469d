"""Inference in slices of a batch, as on one CPU, equals inference of the batch at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from tiny_run import CLASSES, NETWORK, PIXELS, draw_images

from imta_jax.distributed import data_mesh
from imta_jax.models import build_classifier, inference_logits
from imta_jax.nn.pixels import normalize

SMALL, LARGE = 16, 80  # Pixels per side, for CHWN and NHWC maps on one CPU.

Network = tuple[nnx.GraphDef, nnx.State]


@functools.cache
def network(side: int = SMALL) -> Network:
    shape = {"num_classes": CLASSES, "image_shape": (side, side, 1)}
    return nnx.split(build_classifier(NETWORK, **shape, rngs=nnx.Rngs(0)))


def logits_on(mesh: Mesh, network: Network):
    graphdef, state = network

    def logits(images: jax.Array) -> jax.Array:
        return inference_logits(graphdef, [state], images, **PIXELS, mesh=mesh)

    return logits


@pytest.mark.parametrize(
    ("count", "side", "sliced"),
    [
        (5, SMALL, False),
        (127, SMALL, False),
        (128, SMALL, True),
        (131, SMALL, True),
        (63, LARGE, False),
        (65, LARGE, True),
    ],
)
def test_logits_in_slices_equal_those_at_once(count: int, side: int, sliced: bool) -> None:
    images = jnp.asarray(np.resize(draw_images(count, 0)[0], (count, side, side, 1)))
    one, eight = (data_mesh(jax.devices()[:n]) for n in (1, 8))
    in_slices, at_once = logits_on(one, network(side)), logits_on(eight, network(side))
    assert ("scan" in str(jax.make_jaxpr(in_slices)(images))) == sliced
    assert "scan" not in str(jax.make_jaxpr(at_once)(images))
    actual, expected = jax.jit(in_slices)(images), jax.jit(at_once)(images)
    assert actual.shape == (2, count, CLASSES)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_classifier_in_training_mode_is_evaluated_in_inference_mode() -> None:
    classifier = nnx.merge(*network(), copy=True)
    classifier.train()
    images = jnp.asarray(draw_images(128, 0)[0])
    actual = logits_on(data_mesh(jax.devices()[:1]), nnx.split(classifier))(images)
    classifier.eval()
    np.testing.assert_allclose(actual, classifier(normalize(images, **PIXELS)), atol=1e-5)
