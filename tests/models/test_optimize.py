"""Optimized forms share the classifier's variables and compute the same function."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from tiny_run import CLASSES, NETWORK, draw_images

from imta_jax.distributed import data_mesh, place_batch
from imta_jax.models import MultiExitClassifier, build_classifier, msdnet_fused
from imta_jax.models.optimize import optimized_form
from imta_jax.nn import fused
from imta_jax.nn.cpu.layout import Layout
from imta_jax.nn.layers import ConvNorm
from imta_jax.training.state import named_arrays

RESNET = {"backbone": "resnet", "stem": "cifar", "channels": 4, "depths": (1, 1), "exits": (1,)}
DENSENET = {
    "backbone": "densenet", "stem": "cifar", "channels": 4, "growth_rate": 2, "depths": (1, 2),
    "bottleneck": True, "reduction": 0.5,
}  # fmt: skip
HYDRANET = {
    "backbone": "hydranet", "channels": 4, "gate_weight": 0.1, "depths": (1, 1, 1), "branches": 3,
    "active_branches": 2,
}  # fmt: skip
NETWORKS = {"msdnet": NETWORK, "resnet": RESNET, "densenet": DENSENET, "hydranet": HYDRANET}
FORMS = {
    "fused": {},
    "folded": {"fold_batch_norm": True},
    "chwn": {"layout": Layout.CHWN},
    "chwn_folded": {"layout": Layout.CHWN, "fold_batch_norm": True},
}
pytestmark = pytest.mark.usefixtures("compilation_cache")


def build(fields: dict) -> MultiExitClassifier:
    """A classifier whose running statistics differ from their initial values."""
    classifier = build_classifier(
        fields, num_classes=CLASSES, image_shape=(16, 16, 1), rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(rng.uniform(0, 0.5, x.shape), x.dtype),
        nnx.state(classifier, nnx.BatchStat),
    )
    nnx.update(classifier, moved)
    return classifier


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(draw_images(3, 0)[0], jnp.float32) / 255


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_inference_logits_equal_the_plain_network(network: str, form: str, images: jax.Array):
    classifier = build(NETWORKS[network])
    classifier.eval()

    @nnx.jit
    def both(classifier, images):
        return classifier(images), optimized_form(classifier, **FORMS[form])(images)

    plain, optimized = both(classifier, images)
    chex.assert_trees_all_close(optimized, plain, rtol=1e-4, atol=1e-5)


def test_bfloat16_folding_stays_within_its_precision(images: jax.Array):
    classifier = build(NETWORK)
    classifier.eval()
    classifier.compute_dtype = jnp.dtype("bfloat16")
    plain = classifier.features(images)
    folded = optimized_form(classifier, fold_batch_norm=True).features(images)
    assert {x.dtype for x in folded} == {jnp.dtype("bfloat16")}
    chex.assert_trees_all_close(folded, plain, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("form", ["fused", "chwn_folded"])
def test_training_updates_the_statistics_of_the_plain_network(form: str, images: jax.Array):
    classifier = build(NETWORK)
    classifier.train()
    graphdef, state = nnx.split(classifier)

    @jax.jit
    def logits_and_state(state: nnx.State) -> tuple:
        plain, merged = (nnx.merge(graphdef, state, copy=True) for _ in range(2))
        optimized = optimized_form(merged, **FORMS[form])
        return (plain(images), nnx.state(plain)), (optimized(images), nnx.state(merged))

    plain, optimized = logits_and_state(state)
    chex.assert_trees_all_close(optimized, plain, rtol=1e-3, atol=1e-4)
    before, after = (
        jax.tree.leaves(nnx.filter_state(s, nnx.BatchStat)) for s in (state, optimized[1])
    )
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_classifier_keeps_its_structure_and_shares_its_variables(form: str):
    classifier = build(NETWORK)
    before = nnx.graphdef(classifier)
    optimized = optimized_form(classifier, **FORMS[form])
    assert nnx.graphdef(classifier) == before
    own = {id(v) for _, v in nnx.to_flat_state(nnx.split(classifier)[1])}
    assert {id(v) for _, v in nnx.to_flat_state(nnx.split(optimized)[1])} == own


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("network", ["msdnet", "resnet"])
def test_only_running_statistics_are_folded(network: str, mode: str, monkeypatch):
    folded, fold = [], fused.fold

    def record(norm, kernel):
        folded.append(norm)
        return fold(norm, kernel)

    monkeypatch.setattr(fused, "fold", record)
    classifier = build(NETWORKS[network])
    units = sum(isinstance(module, ConvNorm) for _, module in nnx.iter_modules(classifier))
    getattr(classifier, mode)()
    graphdef, state = nnx.split(classifier)

    def features(state: nnx.State, images: jax.Array) -> tuple[jax.Array, ...]:
        merged = nnx.merge(graphdef, state, copy=True)
        return optimized_form(merged, fold_batch_norm=True).features(images)

    jax.eval_shape(features, state, jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32))
    assert len(folded) == (units if mode == "eval" else 0)


@pytest.mark.parametrize(("devices", "layout"), [(1, Layout.CHWN), (8, Layout.NHWC)])
def test_one_cpu_trains_in_chwn(devices: int, layout: Layout, monkeypatch):
    layouts = set()
    original = msdnet_fused.fused_conv_norm

    def record(units, x, *, layout, fold_batch_norm):
        layouts.add(layout)
        return original(units, x, layout=layout, fold_batch_norm=fold_batch_norm)

    monkeypatch.setattr(msdnet_fused, "fused_conv_norm", record)
    phase = tiny_run.make_phase("phase_one", data_mesh(jax.devices()[:devices]))
    batch = place_batch(tiny_run.draw_batch(16, 0), phase.mesh)
    jax.eval_shape(phase.step, phase.new_state(), batch)
    assert layouts == {layout}


@pytest.mark.parametrize("name", ["phase_one", "phase_two"])
def test_steps_on_one_cpu_equal_steps_on_eight_devices(name: str):
    results = []
    for devices in (1, 8):
        phase = tiny_run.make_phase(name, data_mesh(jax.devices()[:devices]))
        state = phase.new_state()
        for seed in range(2):
            batch = place_batch(tiny_run.draw_batch(16, seed), phase.mesh)
            state, metrics = phase.step(state, batch)
        arrays = named_arrays(state.trainable) | named_arrays(state.rest)
        results.append(tiny_run.to_host(arrays | {"loss": metrics.loss}))
    chex.assert_trees_all_close(*results, rtol=2e-3, atol=2e-5)
