"""Published weights: loading into networks of any topology, and errors for other weights."""

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.interop import load_published_weights, published_slots
from imta_jax.models import MultiExitClassifier, with_collaborative_heads

Arrays = dict[str, np.ndarray]


ROUND_TRIPS = {
    "pruned_min_without_transitions": golden.TINY
    | {
        "num_exits": 4,
        "step_mode": "lin_grow",
        "prune": "min",
        "growth_rate": 5,
        "growth_factors": (1, 2, 4),
        "bottleneck_factors": (1, 2, 4),
        "reduction": 0,
    },
    "imagenet_stem": golden.TINY | {"stem": "imagenet", "num_exits": 3, "base": 2, "prune": "min"},
}


def randomize(network: MultiExitClassifier, seed: int) -> Arrays:
    """Fills all parameters and statistics with random values; returns them by published name."""
    generator = np.random.default_rng(seed)
    for slot in published_slots(network).values():
        draw = generator.uniform(0.5, 1.5, slot.variable[...].shape)
        slot.variable[...] = jnp.asarray(draw, jnp.float32)
    return golden.published_arrays(network)


@pytest.fixture(scope="module", params=ROUND_TRIPS)
def pair(request: pytest.FixtureRequest) -> tuple[MultiExitClassifier, MultiExitClassifier]:
    """Two networks of one topology and different seeds, for images of 32x32."""
    fields, sizes = ROUND_TRIPS[request.param], {"num_classes": 7, "image_shape": (32, 32, 3)}
    return golden.untrained(fields, seed=1, **sizes), golden.untrained(fields, seed=2, **sizes)


def phase_two(network: MultiExitClassifier, seed: int, transfer: str) -> MultiExitClassifier:
    return with_collaborative_heads(
        network, {"transfer": transfer}, num_classes=7, rngs=nnx.Rngs(seed)
    )


@pytest.mark.parametrize("transfer", [None, "linear", "identity"])
def test_loaded_arrays_give_the_same_logits(pair, transfer: str | None):
    first, second = pair
    if transfer:
        first, second = phase_two(first, 3, transfer), phase_two(second, 4, transfer)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    exported = randomize(first, seed=5)
    randomize(second, seed=6)

    def logits(network: MultiExitClassifier) -> np.ndarray:
        network.eval()
        return np.asarray(network(images))

    assert not np.array_equal(logits(first), logits(second))
    load_published_weights(second, exported)
    np.testing.assert_array_equal(logits(first), logits(second))
    chex.assert_trees_all_equal(golden.published_arrays(second), exported)


def every_array(network: MultiExitClassifier) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


@pytest.mark.parametrize("transfer", [None, "linear"])
def test_every_variable_has_one_published_name(pair, transfer: str | None):
    network = phase_two(pair[0], 3, transfer) if transfer else pair[0]
    variables = [slot.variable for slot in published_slots(network).values()]
    assert len({id(variable) for variable in variables}) == len(variables)
    assert len(variables) == len(every_array(network))


@pytest.fixture
def tiny() -> MultiExitClassifier:
    return golden.untrained(golden.TINY)


def test_error_lists_all_differences_and_nothing_is_copied(tiny):
    arrays = randomize(golden.untrained(golden.TINY, seed=1), seed=0)
    del arrays["blocks.0.0.layers.0.net.0.weight"], arrays["classifier.1.linear.bias"]
    arrays["blocks.9.0.layers.0.net.0.weight"] = np.zeros(3)
    arrays["isc_modules.0.0.bias"] = np.zeros(128)
    arrays["classifier.0.linear.weight"] = arrays["classifier.0.linear.weight"].T
    before = every_array(tiny)
    with pytest.raises(ValueError, match=r"\b5\b") as raised:
        load_published_weights(tiny, arrays)
    for line in (
        "missing: blocks.0.0.layers.0.net.0.weight",
        "missing: classifier.1.linear.bias",
        "not in this network: blocks.9.0.layers.0.net.0.weight",
        "not in this network: isc_modules.0.0.bias",
        "shape of classifier.0.linear.weight: expected (10, 128), found (128, 10)",
    ):
        assert line in str(raised.value)
    chex.assert_trees_all_equal(every_array(tiny), before)


def test_batch_counters_are_ignored(tiny):
    arrays = randomize(golden.untrained(golden.TINY, seed=1), seed=0)
    counters = {
        key.replace("running_mean", "num_batches_tracked"): np.int64(7)
        for key in arrays
        if key.endswith("running_mean")
    }
    load_published_weights(tiny, arrays | counters)
    chex.assert_trees_all_equal(golden.published_arrays(tiny), arrays)


def test_float16_weights_become_float32(tiny):
    arrays = randomize(golden.untrained(golden.TINY, seed=1), seed=0)
    load_published_weights(tiny, {key: value.astype(np.float16) for key, value in arrays.items()})
    assert {leaf.dtype for leaf in every_array(tiny)} == {np.dtype(np.float32)}


def test_backbone_other_than_msdnet_raises(tiny):
    class Other(nnx.Module):
        num_exits, feature_widths = 1, (4,)

        def stem(self, images): ...

        def stage(self, i, state): ...

        def exit_features(self, i, state): ...

    other = MultiExitClassifier(Other(), tiny.heads, num_classes=10, image_shape=(32, 32, 3))
    with pytest.raises(ValueError, match="Other"):
        published_slots(other)
