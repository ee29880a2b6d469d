"""ResNet, DenseNet and HydraNet as backbones: the interface, and the paper's techniques on them."""

import baseline_networks as baselines
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.models import MultiExitClassifier, with_collaborative_heads
from imta_jax.models.costs import exit_costs
from imta_jax.models.network_table import main, network_rows
from imta_jax.techniques import cross_entropy, one_for_all_loss

LABELS = jnp.arange(4) % baselines.CLASSES


@pytest.mark.parametrize("backbone", baselines.TINY)
def test_stage_by_stage_equals_all_exits_at_once(backbone: str):
    network = baselines.tiny(backbone)

    @nnx.jit
    def stage_by_stage(network: MultiExitClassifier, images: jax.Array) -> jax.Array:
        state, carry, collected = network.stem(images), None, []
        for i in range(network.num_exits):
            state, logits, carry = network.advance(i, state, carry)
            assert isinstance(state, tuple)
            collected.append(logits)
        return jnp.stack(collected)

    images = baselines.images()
    actual = stage_by_stage(network, images)
    assert network.num_exits == len(baselines.TINY[backbone].get("exits", ())) + 1
    chex.assert_shape(actual, (network.num_exits, 4, baselines.CLASSES))
    assert actual.std(axis=1).min() > 0
    expected = baselines.jitted_logits(network, images)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", baselines.TINY)
def test_abstract_construction_has_the_same_shapes(backbone: str):
    fields = {"backbone": backbone} | baselines.TINY[backbone]
    abstract = baselines.abstract(fields, baselines.CLASSES, baselines.IMAGE_SHAPE)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        nnx.state(abstract), nnx.state(baselines.tiny(backbone))
    )


@pytest.mark.parametrize("backbone", baselines.TINY)
def test_the_network_table_sums_to_the_exit_costs(backbone: str):
    network = baselines.tiny(backbone)
    costs, table = exit_costs(network), network_rows(network)
    exits = [row for row in table if row["part"].startswith("exit")]
    assert [row["total multiply-adds"] for row in exits] == costs.macs.tolist()
    assert [row["total parameters"] for row in exits] == costs.params.tolist()


def test_the_network_table_prints_from_the_command_line(capsys):
    main(["resnet_14"])
    printed = capsys.readouterr().out
    assert "layer 6" in printed and "172,506" in printed


def test_a_parameter_free_shortcut_strides_pixels_and_pads_channels():
    network = baselines.tiny("resnet", exits=())
    (block,) = network.backbone.stages[0][1:2]
    block.last.norm.scale[...] *= 0  # The residual path gives zero.
    block.last.norm.mean[...] *= 0
    x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 5, 5, 4)))
    y = block(x)
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 4:], 0)


def test_gradient_equilibrium_scales_the_gradients_of_a_resnet_as_in_eq_5():
    """The gradient of each later loss at stage i is scaled by 1 / (k - i + 1), i from 1."""
    network = baselines.tiny("resnet")
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def gradients(equilibrium: str) -> nnx.State:
        def losses(params: nnx.State) -> jax.Array:
            merged = nnx.merge(graphdef, params, rest, copy=True)
            return cross_entropy(merged(baselines.images(), equilibrium), LABELS)

        return jax.jit(jax.jacrev(losses))(params)

    def of_exit(jacobian: nnx.State, stage: int, exit_index: int) -> nnx.State:
        return jax.tree.map(lambda x: x[exit_index], jacobian["backbone"]["stages"][stage])

    plain, balanced = gradients("off"), gradients("all")
    for i in range(network.num_exits):
        factor = 1 / (network.num_exits - i)
        for later in range(i, network.num_exits):
            before = of_exit(plain, i, later)
            assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(before))
            expected = jax.tree.map(lambda x, factor=factor: factor * x, before)
            actual = of_exit(balanced, i, later)
            chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet", "densenet"])
def test_phase_two_loss_has_a_gradient_in_every_head(backbone: str):
    """With collaboration and distillation, on other backbones than MSDNet."""
    network = with_collaborative_heads(
        baselines.tiny(backbone),
        {"transfer": "linear"},
        num_classes=baselines.CLASSES,
        rngs=nnx.Rngs(1),
    )
    heads = nnx.All(nnx.Param, lambda path, value: path[0] == "heads")

    @nnx.jit
    def step(network: MultiExitClassifier) -> tuple[jax.Array, nnx.State]:
        def loss(network: MultiExitClassifier) -> jax.Array:
            logits = network(baselines.images())
            teacher = jax.lax.stop_gradient(logits[-1])
            return one_for_all_loss(logits, LABELS, teacher, alpha=0.7, temperature=4.0)

        return nnx.value_and_grad(loss, argnums=nnx.DiffState(0, heads))(network)

    value, gradient = step(network)
    assert np.isfinite(value) and value > 0
    for linear in gradient["heads"]["linears"].values():
        assert np.abs(linear["kernel"][...]).max() > 0
