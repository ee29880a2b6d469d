"""Linen models with BatchNorm and Dropout: the numbers of their own `apply`, modes, freezing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import linen, nnx
from flax.nnx import bridge

import imta_jax
from imta_jax.errors import InputError
from imta_jax.models.checks import check_backbone

SHAPE = (8, 8, 1)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)


def sequential(train=True):
    return linen.Sequential(
        [
            linen.Conv(4, (3, 3)),
            linen.BatchNorm(use_running_average=not train, momentum=0.8),
            linen.relu,
            linen.Dropout(0.5, deterministic=not train),
            linen.Conv(6, (3, 3), strides=(2, 2)),
            linen.BatchNorm(use_running_average=not train, momentum=0.8),
        ]
    )


class Residual(linen.Module):
    width: int
    stride: int = 1

    @linen.compact
    def __call__(self, x, train):
        y = linen.Conv(self.width, (3, 3), strides=(self.stride,) * 2)(x)
        y = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.8)(y))
        return y + linen.Conv(self.width, (1, 1), strides=(self.stride,) * 2)(x)


class ResNet(linen.Module):
    """The mode is a field of the model and a parameter of its blocks."""

    train: bool = False

    def setup(self):
        self.first = linen.Conv(4, (3, 3))
        self.norm = linen.BatchNorm(use_running_average=not self.train, momentum=0.8)
        self.blocks = [Residual(4), Residual(8, 2)]

    def embed(self, x):
        return linen.relu(self.norm(self.first(x)))

    def __call__(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, self.train)
        return x


MODELS = {
    "sequential": (sequential, {"exits": ["layers.3"]}),
    "resnet": (ResNet, {"exits": ["blocks.0"], "layers": ["embed", "blocks"]}),
}


def wrapped(name, **options):
    make, named = MODELS[name]
    return imta_jax.wrap(make(), image_shape=SHAPE, rngs=nnx.Rngs(0), **named | options)


def last_output(backbone, images=IMAGES):
    states = {}
    tiny_run.backbone_features(backbone, images, lambda i, state: states.setdefault(i, state))
    return states[backbone.num_exits - 1][0]


def linen_variables(backbone):
    """The variables as Linen has them."""
    collections = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {
        name: nnx.to_pure_dict(nnx.state(backbone.module, kind))
        for name, kind in collections.items()
    }


def same_keys(monkeypatch, backbone, key):
    """Gives every layer the same key, as one `apply` of the model does."""
    monkeypatch.setattr(
        type(backbone.module), "_keys", lambda self: {"params": key, "dropout": key}
    )


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_statistics_are_those_of_the_models_own_apply(name, monkeypatch):
    backbone, key = wrapped(name), jax.random.key(7)
    check_backbone(backbone, SHAPE, "wrapped")
    variables = jax.tree.map(jnp.array, linen_variables(backbone))
    backbone.train()
    same_keys(monkeypatch, backbone, key)
    for step in range(3):
        images = IMAGES + step
        expected, updated = MODELS[name][0](train=True).apply(
            variables, images, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(last_output(backbone, images), expected, rtol=1e-5, atol=1e-5)
        variables = variables | updated
    chex.assert_trees_all_close(linen_variables(backbone), variables, rtol=1e-6)
    backbone.eval()
    expected = MODELS[name][0](train=False).apply(variables, IMAGES)
    np.testing.assert_allclose(last_output(backbone), expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(linen_variables(backbone), variables, rtol=1e-6)


def test_initial_variables_are_those_of_the_bridge_of_flax():
    bridged = bridge.ToNNX(sequential(train=False), rngs=nnx.Rngs(0))
    bridge.lazy_init(bridged, IMAGES)
    actual, expected = (
        nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
        for model in (wrapped("sequential").module, bridged)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_every_call_in_training_draws_another_key_and_inference_draws_none():
    backbone = wrapped("sequential")
    backbone.train()
    assert not np.array_equal(last_output(backbone), last_output(backbone))
    backbone.eval()
    np.testing.assert_array_equal(last_output(backbone), last_output(backbone))


def test_a_model_that_draws_no_keys_has_none_among_its_variables():
    names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(wrapped("resnet")))}
    assert names == {"kernel", "bias", "scale", "mean", "var"}


def test_layers_of_a_sequential_model_need_no_mode_of_their_own():
    model = linen.Sequential([linen.Dense(4), linen.BatchNorm(), linen.Dropout(0.5)])
    backbone = imta_jax.wrap(model, exits=["layers.0"], image_shape=SHAPE, rngs=nnx.Rngs(0))
    backbone.train()
    before = last_output(backbone)
    assert (before == 0).any() and (backbone.module.layers_1["mean"][...] != 0).any()


def test_layers_of_a_sequential_model_get_the_mode_as_a_required_parameter():
    model = linen.Sequential([Residual(4), Residual(8, 2)])
    backbone = imta_jax.wrap(model, exits=["layers.0"], image_shape=SHAPE, rngs=nnx.Rngs(0))
    backbone.train()
    last_output(backbone)
    means = [getattr(backbone.module, f"layers_{i}")["BatchNorm_0"]["mean"] for i in range(2)]
    assert all((mean[...] != 0).any() for mean in means)


def test_frozen_statistics_of_a_layer_do_not_change_and_those_of_a_method_raise():
    backbone = wrapped("resnet")
    backbone.train()
    backbone.module.freeze_statistics(lambda path: path[0] == "blocks_0")
    last_output(backbone)
    statistics = linen_variables(backbone)["batch_stats"]
    assert (statistics["blocks_0"]["BatchNorm_0"]["mean"] == 0).all()
    assert (statistics["blocks_1"]["BatchNorm_0"]["mean"] != 0).any()
    backbone.module.freeze_statistics(lambda path: path[0] == "norm")
    with pytest.raises(InputError, match=r"layer 'embed'.*norm\.mean.*freeze"):
        last_output(backbone)


def test_a_random_layer_without_keys_is_named():
    bridged = bridge.ToNNX(sequential(train=False), rngs=nnx.Rngs(0))
    bridge.lazy_init(bridged, IMAGES)
    bridged.to_nnx__rngs = None
    with pytest.raises(InputError, match=r"rngs is None.*dropout"):
        imta_jax.wrap(bridged, exits=["layers.0"], image_shape=SHAPE)


class Hidden(linen.Module):
    """Layers with a fixed mode that the model sets itself."""

    def setup(self):
        self.norm = linen.BatchNorm(use_running_average=False)

    def __call__(self, x):
        return self.norm(x)


def test_a_layer_with_a_fixed_training_mode_is_named():
    with pytest.raises(InputError, match=r"layer 'norm'.*inference mode"):
        imta_jax.wrap(
            Hidden(), layers=["norm"], exits=["norm"], image_shape=SHAPE, rngs=nnx.Rngs(0)
        )
