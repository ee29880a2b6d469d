"""Inline subnetwork collaboration: what each transfer computes, and which heads it trains."""

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import nnx

from imta_jax.models import MultiExitClassifier, with_collaborative_heads
from imta_jax.nn.initialization import get_initialization
from imta_jax.techniques import TRANSFERS, IndependentHeads, ResidualHeads, TransferHeads

WIDTHS, N, K = (4, 6, 3), 8, 5
SHAPE = (6, 6, 2)
IMAGES = jax.random.normal(jax.random.key(0), (N, *SHAPE))


class Patches(nnx.Module):
    """A backbone without convolutions: exit i sees a random projection of the image."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.num_exits, self.feature_widths = len(WIDTHS), WIDTHS
        self.projections = nnx.List(
            [nnx.Param(jax.random.normal(rngs.params(), (72, width)) / 9) for width in WIDTHS]
        )

    def stem(self, images: jax.Array) -> tuple[jax.Array, ...]:
        return (images.reshape(len(images), -1),)

    def stage(self, i: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return state

    def exit_features(self, i: int, state: tuple[jax.Array, ...]) -> jax.Array:
        return state[0] @ self.projections[i][...]


def phase_one() -> MultiExitClassifier:
    rngs = nnx.Rngs(0)
    heads = IndependentHeads(WIDTHS, K, init=get_initialization("pytorch"), rngs=rngs)
    return MultiExitClassifier(Patches(rngs=rngs), heads, num_classes=K, image_shape=SHAPE)


def phase_two(classifier: MultiExitClassifier, **heads_config) -> MultiExitClassifier:
    return with_collaborative_heads(classifier, heads_config, num_classes=K, rngs=nnx.Rngs(1))


def call(classifier: MultiExitClassifier):
    """The logits as a pure function of the images, for `jax.jit`."""
    graphdef, state = nnx.split(classifier)
    return lambda images: nnx.merge(graphdef, state, copy=True)(images)


def affine(layer: nnx.Linear, x: np.ndarray) -> np.ndarray:
    return np.asarray(x) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def independent_logits(classifier: MultiExitClassifier) -> np.ndarray:
    """The logits of every exit's linear layer alone, in NumPy."""
    features = classifier.features(IMAGES)
    layers = classifier.heads.linears
    return np.stack([affine(layer, x) for layer, x in zip(layers, features, strict=True)])


# What the heads compute.


class HeadsTest(chex.TestCase):
    """Compares the heads with the formulas, with and without `jax.jit`."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("phase_one", "fresh")
    def test_identity_transfer_sums_the_independent_logits(self, start):
        classifier = phase_two(phase_one(), transfer="identity", start=start)
        expected = independent_logits(classifier).cumsum(axis=0)
        actual = self.variant(call(classifier))(IMAGES)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("phase_one", "fresh")
    def test_without_transfer_exits_are_independent(self, start):
        classifier = phase_two(phase_one(), transfer="none", start=start)
        actual = self.variant(call(classifier))(IMAGES)
        np.testing.assert_allclose(actual, independent_logits(classifier), rtol=1e-5, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_linear_transfer_equals_the_formula(self):
        """The exit's linear layer reads [features, ReLU(BatchNorm(Linear(previous logits)))]."""
        classifier = phase_two(phase_one(), transfer="linear", start="fresh")
        classifier.train()
        actual = self.variant(call(classifier))(IMAGES)
        heads, previous = classifier.heads, None
        for i, joined in enumerate(map(np.asarray, classifier.features(IMAGES))):
            if i > 0:
                prior = affine(heads.transfers[i - 1], previous)
                prior = (prior - prior.mean(0)) / np.sqrt(prior.var(0) + 1e-5)
                joined = np.concatenate([joined, np.maximum(prior, 0)], axis=1)
            previous = affine(heads.linears[i], joined)
            np.testing.assert_allclose(actual[i], previous, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_exit_by_exit_equals_all_at_once(transfer: str):
    classifier = phase_two(phase_one(), transfer=transfer, start="fresh")
    classifier.eval()
    state, carry, collected = classifier.stem(IMAGES), None, []
    for i in range(classifier.num_exits):
        state, logits, carry = classifier.advance(i, state, carry)
        collected.append(logits)
    np.testing.assert_array_equal(np.stack(collected), classifier(IMAGES))


# Gradients.


def head_gradients(classifier: MultiExitClassifier, j: int) -> nnx.State:
    """Gradients of the summed squares of exit j's logits with respect to all heads."""
    features = classifier.features(IMAGES)

    def loss(heads: nnx.Module) -> jax.Array:
        carry = None
        for i in range(j + 1):
            logits, carry = heads(i, features[i], carry)
        return (logits**2).sum()

    return nnx.grad(loss)(classifier.heads)


def largest(gradient: nnx.State) -> float:
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("transfer", ["identity", "linear"])
def test_a_stopped_gradient_does_not_reach_earlier_heads(transfer: str, stop_gradient: bool):
    classifier = phase_two(
        phase_one(), transfer=transfer, stop_gradient=stop_gradient, start="fresh"
    )
    for j in range(classifier.num_exits):
        gradients = head_gradients(classifier, j)
        for i, own in enumerate(gradients["linears"][n] for n in range(classifier.num_exits)):
            if i == j:
                assert largest(own) > 0
            elif i > j or stop_gradient:
                assert largest(own) == 0
            else:
                assert largest(own) > 0
        if transfer == "linear":
            for n, own in ((n, gradients["transfers"][n]) for n in range(len(WIDTHS) - 1)):
                # Exit n + 1 reads transform n. The gradient stops at the earlier logits.
                read = n + 1 == j or (n + 1 < j and not stop_gradient)
                assert (np.abs(own["kernel"][...]).max() > 0) == read


def test_the_gradient_is_stopped_by_default():
    classifier = phase_two(phase_one(), transfer="identity")
    assert largest(head_gradients(classifier, 1)["linears"][0]) == 0


@pytest.mark.parametrize("transfer", ["identity", "linear"])
def test_a_stopped_gradient_does_not_change_the_logits(transfer: str):
    config = {"transfer": transfer, "start": "fresh"}
    stopped, kept = (phase_two(phase_one(), **config, stop_gradient=stop) for stop in (True, False))
    np.testing.assert_array_equal(stopped(IMAGES), kept(IMAGES))


# Initial heads.


@pytest.mark.parametrize("transfer", ["none", "linear"])
def test_none_and_linear_transfer_start_with_phase_one_logits(transfer: str):
    first = phase_one()
    before = np.asarray(first(IMAGES))
    # Zero weights add exact zeros, but a longer dot product may be summed in another order.
    actual = phase_two(first, transfer=transfer)(IMAGES)
    np.testing.assert_allclose(actual, before, rtol=1e-6, atol=1e-6)


def test_a_linear_transfer_starts_with_a_nonzero_gradient():
    """Only the layer that reads the transform starts at zero, so its gradient is not zero."""
    classifier = phase_two(phase_one(), transfer="linear")
    gradients = head_gradients(classifier, 1)
    reading = gradients["linears"][1]["kernel"][...]
    assert np.abs(reading[WIDTHS[1] :]).max() > 0


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_changes_of_phase_two_heads_do_not_change_phase_one_heads(transfer: str):
    first = phase_one()
    before = np.asarray(first(IMAGES))
    second = phase_two(first, transfer=transfer)
    for layer in second.heads.linears:
        layer.kernel[...] = jnp.ones_like(layer.kernel[...])
        layer.bias[...] = layer.bias[...] + 1
    np.testing.assert_array_equal(first(IMAGES), before)
    teacher = second.phase_one_logits(second.features(IMAGES))
    np.testing.assert_array_equal(teacher, before[-1])


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_fresh_heads_have_new_random_kernels(transfer: str):
    first = phase_one()
    second = phase_two(first, transfer=transfer, start="fresh")
    for own, other in zip(second.heads.linears, first.heads.linears, strict=True):
        width = other.kernel[...].shape[0]
        assert not np.isclose(own.kernel[...][:width], other.kernel[...]).any()


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_the_backbone_is_shared_and_the_heads_are_not(transfer: str):
    first = phase_one()
    second = phase_two(first, transfer=transfer)
    assert second.backbone is first.backbone and second.phase_one_heads is first.heads
    own = {id(leaf) for _, leaf in nnx.iter_graph(second.heads) if isinstance(leaf, nnx.Variable)}
    others = {id(leaf) for _, leaf in nnx.iter_graph(first) if isinstance(leaf, nnx.Variable)}
    assert own and not own & others


def test_each_transfer_has_its_class_of_heads():
    kinds = {
        transfer: type(phase_two(phase_one(), transfer=transfer).heads) for transfer in TRANSFERS
    }
    assert kinds == {"none": IndependentHeads, "identity": ResidualHeads, "linear": TransferHeads}


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_heads_fit_an_msdnet(transfer: str):
    first = golden.untrained(golden.TINY, image_shape=(16, 16, 3))
    second = with_collaborative_heads(
        first, {"transfer": transfer}, num_classes=10, rngs=nnx.Rngs(0)
    )
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    actual = nnx.eval_shape(lambda network, images: network(images), second, images)
    assert actual.shape == (2, 2, 10) and actual.dtype == jnp.float32


# Errors.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transfer": "identiy"}, r"heads_config\.transfer 'identiy'.*: identity"),
        ({"start": "phase1"}, r"heads_config\.start 'phase1'.*: phase_one"),
        ({"stop": True}, "heads_config 'stop'.*: stop_gradient"),
        ({"initialization": "he"}, r"heads_config\.initialization 'he'.*: he_normal"),
    ],
)
def test_unknown_names_raise_with_the_closest_name_first(config: dict, message: str):
    with pytest.raises(ValueError, match=message):
        phase_two(phase_one(), **config)


def test_a_phase_two_classifier_raises():
    with pytest.raises(ValueError, match=r"classifier.*phase-I"):
        phase_two(phase_two(phase_one()))


def test_another_number_of_classes_raises():
    with pytest.raises(ValueError, match=r"num_classes.*5.*7"):
        with_collaborative_heads(phase_one(), {}, num_classes=7, rngs=nnx.Rngs(0))


def test_phase_one_logits_of_a_phase_one_classifier_raise():
    classifier = phase_one()
    with pytest.raises(ValueError, match=r"phase_one_heads.*with_collaborative_heads"):
        classifier.phase_one_logits(classifier.features(IMAGES))


@pytest.mark.parametrize("i", [1, 2])
@pytest.mark.parametrize("transfer", ["identity", "linear"])
def test_a_later_exit_without_a_carry_raises(transfer: str, i: int):
    classifier = phase_two(phase_one(), transfer=transfer)
    with pytest.raises(ValueError, match=r"carry.*None"):
        classifier.heads(i, classifier.features(IMAGES)[i], None)
