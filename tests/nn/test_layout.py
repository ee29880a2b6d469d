"""Maps channels first, as one processor has them in training, are maps images first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from tiny_run import CLASSES, NETWORK, draw_images

from imta_jax.distributed import data_mesh, place_batch
from imta_jax.models import build_classifier, msdnet
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.layout import Layout, lay_out
from imta_jax.nn.layers import BatchNorm, Conv
from imta_jax.training.state import named_arrays

SHAPE = {"num_classes": CLASSES, "image_shape": (16, 16, 1)}


def mesh_of(devices: int):
    return data_mesh(jax.devices()[:devices])


def layouts(module: nnx.Module) -> set[Layout]:
    return {m.layout for _, m in nnx.iter_modules(module) if isinstance(m, (BatchNorm, Conv))}


def test_turning_twice_is_nothing():
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for layout in Layout:
        turned = layout.turned(x)
        assert turned.shape[layout.channels] == 5
        np.testing.assert_array_equal(layout.turned(turned), x)
        each = layout.turned(turned + layout.per_channel(jnp.arange(5)))
        np.testing.assert_array_equal(each, x + jnp.arange(5)[None, None, None])


@pytest.mark.parametrize("name", ["phase_one", "phase_two"])
def test_steps_on_one_processor_are_those_on_eight(name: str):
    ends = []
    for devices in (1, 8):
        phase = tiny_run.make_phase(name, mesh_of(devices))
        state = phase.start()
        for seed in range(2):
            batch = place_batch(tiny_run.draw_batch(16, seed), phase.mesh)
            state, metrics = phase.step(state, batch)
        arrays = named_arrays(state.trainable) | named_arrays(state.rest)
        ends.append(tiny_run.to_host(arrays | {"loss": metrics.loss}))
    for key, expected in ends[1].items():
        np.testing.assert_allclose(ends[0][key], expected, rtol=2e-3, atol=2e-5, err_msg=key)


def test_every_module_of_a_backbone_follows():
    classifier = build_classifier(NETWORK, **SHAPE, rngs=nnx.Rngs(0))
    lay_out(classifier.backbone, Layout.CHANNELS_FIRST)
    assert layouts(classifier.backbone) == {Layout.CHANNELS_FIRST}
    images = jnp.asarray(draw_images(3, 0)[0], jnp.float32)
    state = classifier.stem(images)
    assert [maps.shape[3] for maps in state] == [3] * len(state)
    assert {features.shape[0] for features in classifier.features(images)} == {3}


def test_a_backbone_that_cannot_choose_is_left_alone():
    fields = {"backbone": "resnet", "stem": "cifar", "channels": 4, "depths": (1, 1)}
    classifier = build_classifier(fields, **SHAPE, rngs=nnx.Rngs(0))
    lay_out(classifier.backbone, Layout.CHANNELS_FIRST)
    assert layouts(classifier.backbone) == {Layout.IMAGES_FIRST}


@pytest.mark.parametrize("devices, expected", [(1, "CHWN"), (8, "NHWC")])
def test_one_processor_trains_channels_first(devices: int, expected: str, monkeypatch):
    seen = set()

    def noted(*arguments, layout):
        seen.add(layout)
        return convolve(*arguments, layout=layout)

    monkeypatch.setattr(msdnet, "convolve", noted)
    phase = tiny_run.make_phase("phase_one", mesh_of(devices))
    batch = place_batch(tiny_run.draw_batch(16, 0), phase.mesh)
    jax.eval_shape(phase.step, phase.start(), batch)
    assert seen == {Layout(expected)}


def test_a_step_leaves_the_classifier_as_it_was():
    phase = tiny_run.make_phase("phase_one", mesh_of(1))
    phase.step(phase.start(), place_batch(tiny_run.draw_batch(16, 0), phase.mesh))
    assert layouts(phase.classifier) == {Layout.IMAGES_FIRST}
    assert layouts(nnx.merge(phase.graphdef, *nnx.split(phase.classifier)[1:])) == {
        Layout.IMAGES_FIRST
    }
