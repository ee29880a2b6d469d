"""Inference in slices, as one processor does it, is inference at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from tiny_run import CLASSES, NETWORK, PIXELS, draw_images

from imta_jax.models import build_classifier, inference_logits
from imta_jax.parallel import data_mesh
from imta_jax.pixels import normalize

SLICED = 64


@pytest.fixture(scope="module")
def network() -> tuple[nnx.GraphDef, nnx.State]:
    shape = {"num_classes": CLASSES, "image_shape": (16, 16, 1)}
    return nnx.split(build_classifier(NETWORK, **shape, rngs=nnx.Rngs(0)))


def on(mesh: Mesh, network: tuple[nnx.GraphDef, nnx.State]):
    graphdef, state = network

    def logits(images: jax.Array) -> jax.Array:
        return inference_logits(graphdef, [state], images, **PIXELS, mesh=mesh)

    return logits


@pytest.mark.parametrize("count", [5, SLICED, SLICED + 1, SLICED + 31])
def test_slices_are_the_whole(network: tuple[nnx.GraphDef, nnx.State], count: int) -> None:
    images = jnp.asarray(draw_images(count, 0)[0])
    one, all_of_them = (data_mesh(jax.devices()[:n]) for n in (1, 8))
    in_slices, at_once = on(one, network), on(all_of_them, network)
    assert ("scan" in str(jax.make_jaxpr(in_slices)(images))) == (count >= SLICED)
    assert "scan" not in str(jax.make_jaxpr(at_once)(images))
    found, expected = jax.jit(in_slices)(images), jax.jit(at_once)(images)
    assert found.shape == (2, count, CLASSES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_inference_whatever_mode_the_classifier_is_in(
    network: tuple[nnx.GraphDef, nnx.State],
) -> None:
    classifier = nnx.merge(*network, copy=True)
    classifier.train()
    images = jnp.asarray(draw_images(SLICED, 0)[0])
    found = on(data_mesh(jax.devices()[:1]), nnx.split(classifier))(images)
    classifier.eval()
    np.testing.assert_allclose(found, classifier(normalize(images, **PIXELS)), atol=1e-5)
