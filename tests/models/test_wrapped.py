"""Backbones from existing models: equal outputs, names of layers and exits, training, Linen."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import linen, nnx

import imta_jax
from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier, build_classifier
from imta_jax.models.checks import check_backbone
from imta_jax.models.compute_dtype import follow_compute_dtype
from imta_jax.runtime.registry import BACKBONES
from imta_jax.techniques import IndependentHeads
from imta_jax.training import PhaseOneObjective

SHAPE = (8, 8, 1)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)


def sequential(seed=0):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        nnx.Conv(1, 4, (3, 3), rngs=rngs),
        nnx.relu,
        nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs),
        nnx.relu,
        nnx.Conv(6, 8, (3, 3), strides=2, rngs=rngs),
    )


def shrinking():
    """A model whose first map has no positions."""
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Conv(1, 4, (9, 9), padding="VALID", rngs=rngs), nnx.relu)


class Model(nnx.Module):
    """Layers as attributes, a list and a method; `unused` is not among the layers."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(1, 4, (2, 2), strides=2, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.unused = nnx.Linear(4, 100, rngs=rngs)

    def embed(self, images):
        x = self.patches(images)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def whole(self, images):
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x


def outputs(backbone):
    return tiny_run.backbone_features(backbone, IMAGES)


def test_last_exit_has_the_output_of_the_model():
    model = sequential()
    backbone = imta_jax.wrap(model, exits=["layers.1", "layers.3"], image_shape=SHAPE)
    assert backbone.num_exits == 3 and backbone.feature_widths == (4, 6, 8)
    check_backbone(backbone, SHAPE, "wrapped")
    np.testing.assert_allclose(outputs(backbone)[-1], model(IMAGES).mean((1, 2)), rtol=1e-5)


def test_layers_may_be_attributes_lists_and_methods():
    model = Model(nnx.Rngs(0))
    backbone = imta_jax.wrap(
        model, layers=["embed", "blocks"], exits=["blocks.0"], image_shape=SHAPE
    )
    assert backbone.stages == (("embed", "blocks.0"), ("blocks.1", "blocks.2"))
    np.testing.assert_allclose(outputs(backbone)[-1], model.whole(IMAGES).mean(1), rtol=1e-5)


def test_exits_have_their_own_layer_and_pooling():
    rngs = nnx.Rngs(0)
    backbone = imta_jax.wrap(
        Model(rngs),
        layers=["embed", "blocks"],
        exits=["blocks.0"],
        image_shape=SHAPE,
        pool=lambda x: x[:, 0],
        exit_layer=lambda width: nnx.Linear(width, 5, rngs=rngs),
    )
    assert backbone.feature_widths == (5, 5) and len(backbone.exit_layers) == 2
    assert [x.shape for x in outputs(backbone)] == [(4, 5), (4, 5)]


def linen_sequential():
    return linen.Sequential(
        [
            linen.Conv(4, (3, 3)),
            linen.relu,
            linen.Conv(6, (3, 3), strides=(2, 2)),
            linen.LayerNorm(),
        ]
    )


class LinenModel(linen.Module):
    def setup(self):
        self.first = linen.Conv(4, (3, 3))
        self.blocks = [linen.Conv(4, (3, 3)) for _ in range(2)]

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_linen_models_give_the_outputs_of_their_own_call():
    for model, options in (
        (linen_sequential(), {"exits": ["layers.1"]}),
        (LinenModel(), {"exits": ["first"], "layers": ["first", "blocks"]}),
    ):
        backbone = imta_jax.wrap(model, image_shape=SHAPE, rngs=nnx.Rngs(0), **options)
        check_backbone(backbone, SHAPE, "wrapped")
        variables = {"params": nnx.to_pure_dict(nnx.state(backbone.module))}
        expected = model.apply(variables, IMAGES).mean((1, 2))
        np.testing.assert_allclose(outputs(backbone)[-1], expected, rtol=1e-5, atol=1e-6)


def test_an_initialized_bridged_model_keeps_its_weights():
    bridged = nnx.bridge.ToNNX(linen_sequential(), rngs=nnx.Rngs(3))
    nnx.bridge.lazy_init(bridged, IMAGES)
    expected = bridged(IMAGES).mean((1, 2))
    backbone = imta_jax.wrap(bridged, exits=["layers.1"], image_shape=SHAPE)
    check_backbone(backbone, SHAPE, "wrapped")
    np.testing.assert_allclose(outputs(backbone)[-1], expected, rtol=1e-5, atol=1e-6)


class Attention(nnx.Module):
    """Dropout in attention, which Flax leaves without a mode, and layers in a dictionary."""

    def __init__(self, rngs):
        self.blocks = nnx.Dict(
            {
                name: nnx.MultiHeadAttention(2, 4, decode=False, dropout_rate=0.5, rngs=rngs)
                for name in ("second", "first")
            }
        )
        self.patches = nnx.Conv(1, 4, (2, 2), strides=2, rngs=rngs)
        self.position = nnx.Param(jnp.zeros(4))

    def embed(self, images):
        return self.patches(images).reshape(images.shape[0], -1, 4)


def test_attention_with_dropout_and_layers_of_a_dictionary_are_wrapped():
    backbone = imta_jax.wrap(
        Attention(nnx.Rngs(0)),
        layers=["embed", "blocks"],
        exits=["blocks.second"],
        image_shape=SHAPE,
    )
    assert backbone.stages == (("embed", "blocks.second"), ("blocks.first",))
    check_backbone(backbone, SHAPE, "wrapped")


def test_layers_of_a_wrapped_model_compute_in_the_dtype_of_the_run():
    backbone = imta_jax.wrap(sequential(), exits=["layers.1"], image_shape=SHAPE)
    follow_compute_dtype(backbone, jnp.dtype(jnp.bfloat16))
    (maps,) = backbone.stage(0, backbone.stem(IMAGES.astype(jnp.bfloat16)))
    assert maps.dtype == jnp.bfloat16


@pytest.mark.parametrize("make", [lambda rngs: Model(rngs), lambda rngs: LinenModel()])
def test_gradients_reach_the_layers_and_not_unused_parts(make):
    rngs = nnx.Rngs(0)
    model = make(rngs)
    is_linen = isinstance(model, linen.Module)
    layers = ["first", "blocks"] if is_linen else ["embed", "blocks"]
    backbone = imta_jax.wrap(model, layers=layers, exits=layers[:1], image_shape=SHAPE, rngs=rngs)
    heads = IndependentHeads(backbone.feature_widths, 3, rngs=rngs)
    classifier = MultiExitClassifier(backbone, heads, num_classes=3, image_shape=SHAPE)
    objective = PhaseOneObjective(equilibrium="all")

    def loss(classifier):
        return objective(classifier, IMAGES, jnp.array([0, 1, 2, 0]))[0]

    gradients = nnx.grad(loss)(classifier)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    nonzero = {jax.tree_util.keystr(path): bool(jnp.any(leaf != 0)) for path, leaf in leaves}
    assert all(value != ("unused" in name) for name, value in nonzero.items()), nonzero


def test_a_factory_may_return_a_wrapped_model(monkeypatch):
    def make(options, *, num_classes, image_shape, rngs):
        return imta_jax.wrap(
            linen_sequential(), exits=["layers.1"], image_shape=image_shape, rngs=rngs
        )

    monkeypatch.setitem(BACKBONES._components, "wrapped", make)
    made = build_classifier(
        {"backbone": "wrapped"}, num_classes=3, image_shape=SHAPE, rngs=nnx.Rngs(0)
    )
    abstract = nnx.eval_shape(
        lambda: build_classifier(
            {"backbone": "wrapped"}, num_classes=3, image_shape=SHAPE, rngs=nnx.Rngs(0)
        )
    )
    assert made(IMAGES).shape == (2, 4, 3)
    assert jax.tree.map(jnp.shape, nnx.state(made)) == jax.tree.map(jnp.shape, nnx.state(abstract))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"exits": ["layers.9"]}, r"exit 'layers\.9'.*layers\.0, layers\.1"),
        ({"exits": ["layers.3", "layers.1"]}, r"order of the layers.*'layers\.3', 'layers\.1'"),
        ({"exits": ["layers.1", "layers.1"]}, r"exits has 'layers\.1' twice"),
        ({"exits": ["layers"]}, r"exit 'layers'.*'layers\.4'"),
        ({"exits": ["layer.1"]}, r"exit 'layer\.1'.*first: layers\.1"),
        ({"image_shape": (8, 8)}, r"image_shape.*\(8, 8, 3\).*found \(8, 8\)"),
        ({"image_shape": (8, 0, 1)}, r"image_shape.*found \(8, 0, 1\)"),
        ({"exit_layer": 3}, r"exit_layer.*found 3"),
        ({"exit_layer": lambda width: width}, r"exit_layer.*found 4"),
        ({"exit_layer": nnx.LayerNorm}, r"exit_layer.*width 4.*rngs"),
        (
            {"module": shrinking(), "exits": ["layers.0"]},
            r"'layers\.0'.*exit 1.*empty.*\(1, 0, 0, 4\)",
        ),
        ({"layers": ["layrs"]}, r"layer 'layrs'.*first: layers"),
        ({"module": Model(nnx.Rngs(0))}, r"layers is None.*Model"),
        ({"module": LinenModel()}, r"rngs is None"),
        ({"exits": "layers.1"}, r"exits.*'layers\.1'"),
        ({"layers": []}, r"layers is empty"),
        ({"layers": ["layers.7"]}, r"layer 'layers\.7'.*'7'.*0"),
        ({"layers": ["layers.2"], "exits": []}, r"layer 'layers\.2'.*\(1, 8, 8, 1\)"),
        ({"module": Attention(nnx.Rngs(0)), "layers": ["position"]}, r"'position'.*Param"),
        ({"module": nnx.bridge.ToNNX(linen_sequential())}, r"layer 'layers\.0'.*lazy_init"),
    ],
)
def test_errors_name_the_layer_or_argument(change, message):
    arguments = {"module": sequential(), "exits": ["layers.1"], "image_shape": SHAPE} | change
    wrap = inspect.unwrap(imta_jax.wrap)  # without the tests' check of types
    with pytest.raises(InputError, match=message):
        wrap(arguments.pop("module"), **arguments)
