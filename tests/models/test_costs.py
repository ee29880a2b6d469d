"""Costs per exit: recorded integers, Table 1, collaborative heads, control flow, a new backbone.

The recorded integers come from the published counters (tests/data/costs.json).
"""

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.config import ModelConfig
from imta_jax.models import MultiExitClassifier, with_collaborative_heads
from imta_jax.models.costs import ExitCosts, exit_costs
from imta_jax.models.network_table import network_rows
from imta_jax.models.plan import NetworkSpec, plan_network
from imta_jax.models.spec_fields import read_spec
from imta_jax.nn.initialization import get_initialization
from imta_jax.techniques import IndependentHeads

CONFIGS = golden.metadata("costs")["configs"]
IDS = [
    f"{c['args']['data']}-{c['args']['stepmode']}-{c['args']['nBlocks']}-base{c['args']['base']}-"
    f"{c['args']['prune']}"
    for c in CONFIGS
]


def assert_recorded(costs: ExitCosts, config: dict) -> None:
    assert costs.macs.tolist() == config["macs"]
    assert costs.published_ops.tolist() == config["official_ops"]
    assert costs.params.tolist() == config["params_all_classifiers"]
    assert {costs.macs.dtype, costs.published_ops.dtype, costs.params.dtype} == {np.dtype(np.int64)}


def with_more_classes(costs: ExitCosts, widths: tuple[int, ...], classes: int) -> ExitCosts:
    """The costs with so many more classes, which add to each exit's linear layer and bias."""
    products, biases = classes * np.cumsum(widths), classes * np.arange(1, len(widths) + 1)
    return ExitCosts(
        macs=costs.macs + products,
        published_ops=costs.published_ops + products + biases,
        params=costs.params + products + biases,
    )


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_costs_equal_those_of_the_published_counters(config: dict):
    """Networks for CIFAR-100 are counted with 10 classes, since all have a twin for CIFAR-10."""
    fields, classes = golden.model_fields(config["args"]), config["args"]["num_classes"]
    counted = min(classes, 10) if fields["stem"] == "cifar" else classes
    costs = golden.costs(fields, counted)
    if classes > counted:
        spec = read_spec(NetworkSpec, ModelConfig.from_mapping(fields))
        costs = with_more_classes(costs, plan_network(spec).head_widths, classes - counted)
    assert_recorded(costs, config)


def test_all_recorded_networks_are_different():
    assert len(set(IDS)) == len(CONFIGS) == 32


@pytest.mark.parametrize(
    ("column", "printed"),
    [
        ("params", ["0.30", "0.65", "1.11", "1.73", "2.38", "3.05", "4.0"]),
        ("published_ops", ["6.86", "14.35", "27.29", "48.45", "76.43", "108.9", "137.3"]),
    ],
)
def test_costs_equal_every_printed_digit_of_table_1(column: str, printed: list[str]):
    (config,) = (
        config
        for config in CONFIGS
        if (config["args"]["data"], config["args"]["nBlocks"], config["args"]["prune"])
        == ("cifar100", 7, "max")
        and config["args"]["stepmode"] == "lin_grow"
    )
    costs = golden.costs(golden.model_fields(config["args"]), 100)
    assert_recorded(costs, config)
    for text, value in zip(printed, getattr(costs, column), strict=True):
        decimals = len(text.split(".")[1])
        assert f"{value / 1e6:.{decimals}f}" == text


# Heads.


@pytest.fixture(scope="module")
def small() -> MultiExitClassifier:
    return golden.untrained(golden.TINY | {"num_exits": 3})


def phase_two(classifier: MultiExitClassifier, transfer: str) -> MultiExitClassifier:
    return with_collaborative_heads(
        classifier, {"transfer": transfer}, num_classes=10, rngs=nnx.Rngs(1)
    )


@pytest.mark.parametrize("transfer", ["none", "identity"])
def test_identity_transfer_costs_nothing_and_phase_one_heads_are_not_counted(small, transfer):
    before, after = exit_costs(small), exit_costs(phase_two(small, transfer))
    for field in ("macs", "published_ops", "params"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field))


def test_a_linear_transfer_is_counted_at_every_exit_that_reads_it(small):
    before, after = exit_costs(small), exit_costs(phase_two(small, "linear"))
    classes = 10
    width = np.asarray(small.backbone.feature_widths) * [0, 1, 1]  # The first exit has none.
    products = classes * width + width * classes  # The transform and its reader.
    np.testing.assert_array_equal(after.macs - before.macs, products.cumsum())
    # A bias and a ReLU per transformed value. Normalization costs nothing but has parameters.
    ops, params = products + 2 * width, products + 3 * width
    np.testing.assert_array_equal(after.published_ops - before.published_ops, ops.cumsum())
    np.testing.assert_array_equal(after.params - before.params, params.cumsum())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_counting_does_not_change_the_classifier(small, mode: str):
    classifier = phase_two(small, "linear")
    getattr(classifier, mode)()
    before, arrays = nnx.split(classifier)
    arrays = jax.tree.map(np.array, arrays)
    exit_costs(classifier)
    after, same = nnx.split(classifier)
    assert after == before
    chex.assert_trees_all_equal(same, arrays)
    assert all(not isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(same))


def test_an_abstract_classifier_has_the_same_costs(small):
    abstract = nnx.eval_shape(lambda: golden.untrained(golden.TINY | {"num_exits": 3}))
    expected, actual = exit_costs(small), exit_costs(abstract)
    for field in ("macs", "published_ops", "params"):
        np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field))


def test_costs_grow_with_every_exit(small):
    costs = exit_costs(small)
    for field in ("macs", "published_ops", "params"):
        assert (np.diff(getattr(costs, field), prepend=0) > 0).all()


def test_costs_of_larger_images_grow_with_their_area_and_parameters_do_not(small):
    ours, larger = exit_costs(small), exit_costs(small, (64, 64, 3))
    np.testing.assert_array_equal(larger.params, ours.params)
    # Everything but the linear layers (10 classes from 128 features per exit) is convolution.
    linear = np.arange(1, 4) * 1280
    np.testing.assert_array_equal(larger.macs - linear, 4 * (ours.macs - linear))


def test_another_number_of_channels_raises(small):
    with pytest.raises(ValueError, match=r"image_shape.*\(H, W, 3\).*\(32, 32, 1\)"):
        exit_costs(small, (32, 32, 1))


# A backbone outside the package.


class Toy(nnx.Module):
    """Three stages: a biased convolution and max-pool, a grouped one, a 1x1 without padding."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.num_exits, self.feature_widths = 3, (8, 16, 4)
        self.opening = nnx.Conv(3, 8, (5, 5), rngs=rngs)
        self.grouped = nnx.Conv(8, 16, (3, 3), strides=2, feature_group_count=4, rngs=rngs)
        self.narrow = nnx.Conv(16, 4, (1, 1), use_bias=False, rngs=rngs)

    def stem(self, images: jax.Array) -> tuple[jax.Array, ...]:
        return (images,)

    def stage(self, i: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (x,) = state
        if i == 0:
            return (nnx.max_pool(nnx.relu(self.opening(x)), (3, 3), (2, 2), "SAME"),)
        return (nnx.relu(self.grouped(x)) if i == 1 else nnx.tanh(self.narrow(x)),)

    def exit_features(self, i: int, state: tuple[jax.Array, ...]) -> jax.Array:
        return state[0].max(axis=(1, 2)) if i == 1 else state[0].mean(axis=(1, 2))


# Per stage and exit, on images of 12x12x3 and 7 classes.
TOY_MACS = [
    12 * 12 * 8 * 5 * 5 * 3 + 8 * 7,
    3 * 3 * 16 * 3 * 3 * (8 // 4) + 16 * 7,
    3 * 3 * 4 * 16 + 4 * 7,
]
TOY_EXTRA = [
    12 * 12 * 8 + 6 * 6 * 8 * 3 * 3 + 6 * 6 * 8 + 7,  # ReLU, 3x3 max-pool, global mean, bias
    3 * 3 * 16 + 3 * 3 * 16 + 7,  # ReLU, global maximum, bias
    3 * 3 * 4 + 7,  # global mean, bias
]
TOY_PARAMS = [
    8 * 5 * 5 * 3 + 8 + 8 * 7 + 7,
    16 * 3 * 3 * (8 // 4) + 16 + 16 * 7 + 7,
    4 * 16 + 4 * 7 + 7,
]


@pytest.fixture(scope="module")
def toy() -> MultiExitClassifier:
    rngs = nnx.Rngs(0)
    heads = IndependentHeads((8, 16, 4), 7, init=get_initialization("pytorch"), rngs=rngs)
    return MultiExitClassifier(Toy(rngs=rngs), heads, num_classes=7, image_shape=(12, 12, 3))


def test_a_backbone_outside_the_package_is_counted(toy):
    assert toy(jnp.zeros((2, 12, 12, 3))).shape == (3, 2, 7)
    costs = exit_costs(toy)
    np.testing.assert_array_equal(costs.macs, np.cumsum(TOY_MACS))
    np.testing.assert_array_equal(costs.published_ops, np.cumsum(np.add(TOY_MACS, TOY_EXTRA)))
    np.testing.assert_array_equal(costs.params, np.cumsum(TOY_PARAMS))


def test_the_table_counts_plain_flax_convolutions(toy):
    exits = [row for row in network_rows(toy) if row["part"].startswith("exit")]
    assert [row["total multiply-adds"] for row in exits] == np.cumsum(TOY_MACS).tolist()
    assert [row["total parameters"] for row in exits] == np.cumsum(TOY_PARAMS).tolist()


# Control flow: five products with a 6x6 matrix, a bias and a ReLU on 4x4 pixels.

WIDTH, STEPS, PIXELS = 6, 5, 16
STEP_MACS, STEP_EXTRA = PIXELS * WIDTH * WIDTH, PIXELS * WIDTH
HEAD_MACS, HEAD_EXTRA = WIDTH * 3, PIXELS * WIDTH + 3  # mean over pixels, linear layer with bias


class ControlFlow(nnx.Module):
    """One stage of 1x1 convolutions, run by a function (kernels, x) -> x."""

    def __init__(self, run):
        self.num_exits, self.feature_widths, self.run = 1, (WIDTH,), run
        self.kernels = nnx.Param(jnp.full((STEPS, WIDTH, WIDTH), 0.1))

    def stem(self, images):
        return (images,)

    def stage(self, i, state):
        return (self.run(self.kernels[...], state[0]),)

    def exit_features(self, i, state):
        return state[0].mean(axis=(1, 2))


def step(kernel, x):
    return nnx.relu(x @ kernel)


def control_flow_costs(run) -> tuple[int, int]:
    """(multiply-adds, other published operations) of the stage."""
    heads = IndependentHeads((WIDTH,), 3, init=get_initialization("pytorch"), rngs=nnx.Rngs(0))
    shape = (4, 4, WIDTH)
    network = MultiExitClassifier(ControlFlow(run), heads, num_classes=3, image_shape=shape)
    costs = exit_costs(network)
    extra = costs.published_ops[0] - costs.macs[0]
    return int(costs.macs[0] - HEAD_MACS), int(extra - HEAD_EXTRA)


def unrolled(kernels, x):
    for kernel in kernels:
        x = step(kernel, x)
    return x


def scanned(kernels, x):
    return jax.lax.scan(lambda x, kernel: (step(kernel, x), None), x, kernels)[0]


def scanned_from_zero(kernels, x):
    def add(total, kernel):
        return total + step(kernel, x), None

    return jax.lax.scan(add, jnp.zeros_like(x), kernels)[0]


def counted_loop(kernels, x):
    return jax.lax.fori_loop(0, STEPS, lambda i, x: step(kernels[i], x), x)


@pytest.mark.parametrize("run", [unrolled, scanned, scanned_from_zero, counted_loop])
def test_loops_cost_as_much_as_their_unrolled_form(run):
    assert control_flow_costs(run) == (STEPS * STEP_MACS, STEPS * STEP_EXTRA)


def test_a_carry_that_starts_at_zero_is_counted_as_data():
    def recurrent(kernels, x):
        def add(total, kernel):
            return nnx.relu(total @ kernel) + x, None

        return jax.lax.scan(add, jnp.zeros_like(x), kernels)[0]

    assert control_flow_costs(recurrent) == (STEPS * STEP_MACS, STEPS * STEP_EXTRA)


def test_a_conditional_costs_as_much_as_its_costliest_branch():
    def branch(kernels, x):
        return jax.lax.cond(x.sum() > 0, unrolled, lambda kernels, x: x, kernels, x)

    assert control_flow_costs(branch) == (STEPS * STEP_MACS, STEPS * STEP_EXTRA)


def test_a_loop_of_unknown_length_raises():
    def until_small(kernels, x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: step(kernels[0], x), x)

    with pytest.raises(ValueError, match=r"jax\.lax\.scan"):
        control_flow_costs(until_small)


def test_a_loop_over_parameters_costs_nothing_per_image():
    def normalized_kernel(kernels, x):
        kernel = jax.lax.while_loop(lambda k: (k @ k).sum() > 1, lambda k: k / 2, kernels[0])
        return step(kernel, x)

    assert control_flow_costs(normalized_kernel) == (STEP_MACS, STEP_EXTRA)
