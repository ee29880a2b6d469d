"""MSDNets from configs: parameter counts, recorded topologies, image sizes, invalid input."""

import re

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imta_jax.config import ModelConfig
from imta_jax.models import (
    NETWORK_PRESETS,
    MultiExitClassifier,
    build_classifier,
    resolve_model_config,
)
from imta_jax.models.costs import exit_costs
from imta_jax.models.network_table import main, network_rows
from imta_jax.models.plan import (
    Layer,
    NetworkPlan,
    NetworkSpec,
    layers_per_stage,
    plan_network,
)
from imta_jax.models.spec_fields import read_spec

# Trainable parameters with independent heads; 10 classes, ImageNet 1000.
PARAMETER_COUNTS = {
    "cifar_4_exits": 1_373_076,
    "cifar_5_exits": 2_020_874,
    "cifar_6_exits": 2_782_732,
    "cifar_7_exits": 3_885_394,
    "cifar_8_exits": 5_217_684,
    "cifar_even_7_exits": 2_986_690,
    "cifar_even_10_exits": 4_839_544,
    "cifar_dfs_7_exits": 7_281_078,
    "imagenet_step_4": 31_096_088,
    "imagenet_step_6": 75_087_784,
    "imagenet_step_7": 80_217_816,
    "imagenet_step_4_published": 23_958_440,
    "imagenet_step_6_published": 56_529_304,
    "imagenet_step_7_published": 62_314_472,
    "fashion_mnist_4_exits": 826_002,
    "quickstart": 872_608,
}
CONFIGS = golden.metadata("costs")["configs"]
# The other backbones' presets are pinned in baselines/test_published_sizes.py.
MSDNETS = {name: f for name, f in NETWORK_PRESETS.items() if f["backbone"] == "msdnet"}


def spec_of(fields: dict) -> NetworkSpec:
    return read_spec(NetworkSpec, ModelConfig.from_mapping(fields))


def plan_of(fields: dict) -> NetworkPlan:
    return plan_network(spec_of(fields))


def classes_of(fields: dict) -> int:
    return 1000 if fields["stem"] == "imagenet" else 10


# Sizes.


def test_every_preset_has_a_pinned_parameter_count():
    assert PARAMETER_COUNTS.keys() == MSDNETS.keys()


@pytest.mark.parametrize("preset", MSDNETS)
def test_presets_have_their_pinned_parameter_counts(preset: str):
    fields = NETWORK_PRESETS[preset]
    parameters = nnx.state(golden.counted(fields, classes_of(fields)), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == PARAMETER_COUNTS[preset]


def test_pinned_counts_equal_the_recorded_counts():
    recorded = {
        str(sorted(golden.model_fields(c["args"]).items())): c["params_total"]
        for c in CONFIGS
        if c["args"]["data"] != "cifar100"
    }
    compared = 0
    for preset, fields in MSDNETS.items():
        key = str(sorted((k, v) for k, v in fields.items() if k != "backbone"))
        if key in recorded:
            assert PARAMETER_COUNTS[preset] == recorded[key]
            compared += 1
    assert compared == 10


@pytest.mark.parametrize("preset", ["quickstart", "cifar_4_exits"])
def test_the_table_adds_up_to_the_exit_costs(preset: str):
    fields = NETWORK_PRESETS[preset]
    costs = golden.costs(fields, classes_of(fields))
    network = golden.counted(fields, classes_of(fields))
    table = network_rows(network)
    layers = [row for row in table if row["part"].startswith("layer")]
    assert len(layers) == sum(map(len, network.backbone.plan.stages))
    assert sum(row["multiply-adds"] for row in table) == costs.macs[-1]
    exits = [row for row in table if row["part"].startswith("exit")]
    assert [row["total multiply-adds"] for row in exits] == costs.macs.tolist()
    assert [row["total parameters"] for row in exits] == costs.params.tolist()


def test_the_table_prints_from_the_command_line(capsys):
    main(["cifar_4_exits", "--classes=100"])
    printed = capsys.readouterr().out
    assert "1,419,516" in printed and "37,735,424" in printed
    with pytest.raises(SystemExit):
        main(["cifar_4_exit"])
    assert "valid, the closest first: cifar_4_exits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["my_package.vit.make"])
    assert "my_package.vit:make" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "base", "step", "expected"),
    [
        ("lin_grow", 1, 1, (1, 2, 3, 4, 5)),
        ("lin_grow", 2, 1, (2, 2, 3, 4, 5)),
        ("lin_grow", 1, 2, (1, 3, 5, 7, 9)),
        ("even", 7, 4, (7, 4, 4, 4, 4)),
    ],
)
def test_layers_per_stage(mode: str, base: int, step: int, expected: tuple[int, ...]):
    fields = golden.TINY | {"num_exits": 5, "step_mode": mode, "base": base, "step": step}
    assert layers_per_stage(spec_of(fields)) == expected


# Topology.


def recorded_layer(layer: Layer, block: int, factors: tuple[int, ...]) -> list[dict]:
    """A layer of the plan in the format of the recorded file."""

    def convolutions(branch) -> list[list[int]]:
        first = [branch.inputs, branch.width, 1, 1]
        return [first, [branch.width, branch.outputs, 3, branch.stride]]

    scales = len(factors)
    per_scale = []
    for strided, normal in zip(layer.strided, layer.normal, strict=True):
        entry = {"conv_down": convolutions(strided)} if strided else {}
        per_scale.append(entry | {"conv_normal": convolutions(normal)})
    entries = [
        {
            "kind": "layer",
            "block": block,
            "inScales": len(layer.inputs),
            "outScales": len(layer.normal),
            "nIn": layer.inputs[-1] // factors[-1],
            "convs_per_output_scale": per_scale,
            "layer": layer.number,
        }
    ]
    if layer.transition:
        width, reduced = (channels // factors[-1] for channels in layer.transition[-1])
        entries.append(
            {
                "kind": "transition",
                "block": block,
                "scale_in_out_channels": [list(pair) for pair in layer.transition],
                "after_layer": layer.number,
                "nIn": width,
                "nOut": reduced,
            }
        )
    assert layer.first_scale == scales - len(layer.normal)
    return entries


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_plans_have_the_recorded_structure(config: dict):
    plan = plan_of(golden.model_fields(config["args"]))
    factors, channels = plan.spec.growth_factors, plan.stem_channels
    stem = [list(pair) for pair in zip((3, *channels), channels, strict=False)]
    actual = [{"kind": "first", "block": 1, "scale_in_out_channels": stem}]
    for block, stage in enumerate(plan.stages, start=1):
        for layer in stage:
            actual += recorded_layer(layer, block, factors)
    # The published constructor's growth argument, equal for all layers.
    expected = [{k: v for k, v in e.items() if k != "growth"} for e in config["structure"]]
    assert actual == expected
    assert {e["growth"] for e in config["structure"] if "growth" in e} == {plan.spec.growth_rate}
    assert [len(stage) for stage in plan.stages] == config["steps"]
    heads = zip(plan.head_inputs, plan.head_widths, strict=True)
    classes = config["args"]["num_classes"]
    assert [[[i, w], [w, w], [w, classes]] for i, w in heads] == config["classifier_channels"]


# Building and calling.


@pytest.fixture(scope="module")
def tiny() -> MultiExitClassifier:
    network = golden.untrained(golden.TINY | {"num_exits": 3})
    network.eval()
    return network


def test_given_fields_override_those_of_the_preset():
    fields = resolve_model_config({"preset": "cifar_5_exits", "channels": 8, "reduction": None})
    start = {"initialization": "he_normal"}
    assert fields == NETWORK_PRESETS["cifar_5_exits"] | {"channels": 8} | start
    assert resolve_model_config({"preset": "", "channels": 8}) == {"channels": 8} | start


def test_abstract_construction_has_the_same_shapes(tiny):
    abstract = nnx.eval_shape(lambda: golden.untrained(golden.TINY | {"num_exits": 3}))
    actual, expected = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(n)) for n in (abstract, tiny)
    )
    assert actual == expected


def test_equal_seeds_give_equal_parameters():
    first, again, other = (golden.untrained(golden.TINY, seed=seed) for seed in (3, 3, 4))
    chex.assert_trees_all_equal(nnx.state(first), nnx.state(again))
    kernels = [network.heads.linears[0].kernel[...] for network in (first, other)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize(("name", "bound"), [("pytorch", True), ("he_normal", False)])
def test_initial_kernels_follow_the_named_distribution(name: str, bound: bool):
    network = golden.untrained(golden.TINY | {"initialization": name})
    kernel = np.asarray(network.backbone.exits[0].convolutions[1].conv.kernel[...])
    fan_in = fan_out = 9 * 128
    if bound:
        assert np.abs(kernel).max() <= fan_in**-0.5
        assert kernel.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.01)
    else:
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)
    assert (network.heads.linears[0].bias[...] != 0).any() == bound


def test_stage_by_stage_equals_all_exits_at_once(tiny):
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    state, carry, collected = tiny.stem(images), None, []
    for i in range(tiny.num_exits):
        state, logits, carry = tiny.advance(i, state, carry)
        collected.append(logits)
    at_once = tiny(images)
    assert at_once.shape == (3, 2, 10) and at_once.dtype == jnp.float32
    np.testing.assert_allclose(np.stack(collected), at_once, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28, 1), (30, 30, 3), (33, 17, 2)])
def test_grayscale_and_odd_sizes_work(shape: tuple[int, int, int]):
    network = golden.untrained(golden.TINY, num_classes=3, image_shape=shape)
    logits = nnx.jit(lambda network, images: network(images))(network, jnp.ones((2, *shape)))
    assert logits.shape == (2, 2, 3) and np.isfinite(logits).all()
    costs, table = exit_costs(network), network_rows(network)
    assert table[-1]["total multiply-adds"] == costs.macs[-1]
    assert table[-1]["total parameters"] == costs.params[-1]


# Invalid input.


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 32, 32, 1), (32, 32, 3), (2, 3, 32, 32)])
def test_images_of_another_shape_raise(tiny, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"\[N, 32, 32, 3\].*{re.escape(str(shape))}"):
        tiny(jnp.zeros(shape))


def test_images_that_are_not_normalized_raise(tiny):
    with pytest.raises(ValueError, match="uint8"):
        tiny(jnp.zeros((2, 32, 32, 3), jnp.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_exit": 3}, r"config\.model 'num_exit'.*: num_exits"),
        ({"backbone": "msdnett"}, r"config\.model\.backbone 'msdnett'.*: msdnet"),
        ({"stem": "imagnet"}, r"config\.model\.stem 'imagnet'.*: imagenet"),
        ({"step_mode": "lingrow"}, r"config\.model\.step_mode 'lingrow'.*: lin_grow"),
        ({"prune": "mix"}, r"config\.model\.prune 'mix'.*: (max|min)"),
        ({"depths": (1, 1)}, r"config\.model.*'msdnet'.*'depths'"),
        ({"initialization": "torch"}, r"config\.model\.initialization 'torch'.*: pytorch"),
        ({"num_exits": 0}, r"config\.model\.num_exits.*\b0"),
        ({"base": True}, r"config\.model\.base.*True"),
        ({"step": 1.5}, r"config\.model\.step\b.*1\.5"),
        ({"channels": "8"}, r"config\.model\.channels.*'8'"),
        ({"growth_rate": -2}, r"config\.model\.growth_rate.*-2"),
        (
            {"growth_factors": (1, 2, 4)},
            r"growth_factors.*\(1, 2, 4\).*\(1, 2\)",
        ),
        (
            {"growth_factors": (), "bottleneck_factors": ()},
            r"growth_factors.*\(\).*\(\)",
        ),
        ({"bottleneck_factors": (1, 0)}, r"bottleneck_factors.*\(1, 2, 1, 0\)"),
        ({"reduction": 1.5}, r"config\.model\.reduction.*1\.5"),
        ({"reduction": 0.01}, r"config\.model\.reduction.*0\.01"),
        ({"growth_rate": 5, "growth_factors": (1, 1)}, "growth_rate.*growth_factors.*5 x 1"),
    ],
)
def test_invalid_fields_raise_with_their_names(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        golden.untrained(golden.TINY | change)


def test_missing_fields_are_listed_together_with_the_presets():
    fields = {k: v for k, v in golden.TINY.items() if k not in ("step", "prune")}
    with pytest.raises(ValueError, match=r"prune, step; .*config\.model\.preset.*cifar_4_exits"):
        golden.untrained(fields)


def test_an_unknown_preset_raises_with_the_closest_name_first():
    with pytest.raises(ValueError, match=r"preset 'imagenet_step_8'.*: imagenet_step_"):
        golden.untrained({"preset": "imagenet_step_8"})


@pytest.mark.parametrize("shape", [(32, 32), (0, 32, 3), (1, 32, 32, 3)])
def test_invalid_image_shapes_raise(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"image_shape.*{re.escape(str(shape))}"):
        build_classifier(golden.TINY, num_classes=10, image_shape=shape, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes_raise(num_classes: int):
    with pytest.raises(ValueError, match=rf"num_classes.*{num_classes}\b"):
        golden.untrained(golden.TINY, num_classes=num_classes)
