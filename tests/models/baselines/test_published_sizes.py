"""Parameters and multiply-adds of the baseline presets against published numbers."""

import baseline_networks as baselines
import numpy as np
import pytest

from imta_jax.models import NETWORK_PRESETS
from imta_jax.models.costs import exit_costs

# Trainable parameters; 10 classes, ImageNet 1000.
PARAMETERS = {
    "resnet_14": 172_506,
    "resnet_20": 269_722,
    "resnet_26": 366_938,
    "resnet_32": 464_154,
    "resnet_38": 561_370,
    "resnet_44": 658_586,
    "resnet_18": 11_689_512,
    "resnet_34": 21_797_672,
    "resnet_50": 25_557_032,
    "densenet_16": 44_410,
    "densenet_22": 71_686,
    "densenet_28": 102_730,
    "densenet_34": 137_542,
    "densenet_40": 176_122,
    "densenet_46": 218_470,
    "densenet_121": 7_978_856,
    "densenet_121_growth_24": 4_697_992,
    "densenet_121_growth_30": 7_078_240,
    "googlenet": 7_005_832,
    "resnet_mc": 2_103_830,
    "densenet_mc": 4_868_998,
    "quickstart_resnet_mc": 670_384,
    "quickstart_densenet_mc": 698_000,
}

# Millions of parameters, as printed by He et al. (CIFAR: Table 6) or as in the published ImageNet
# weights.
PUBLISHED_PARAMETERS = {
    "resnet_20": "0.27",
    "resnet_32": "0.46",
    "resnet_44": "0.66",
    "resnet_18": "11.69",
    "resnet_34": "21.80",
    "resnet_50": "25.56",
    "densenet_121": "7.98",
}

# Millions of multiply-adds, printed or read off published figures (to half a percent). 100 classes
# instead of 10 would add at most 0.1%.
PUBLISHED_MULTIPLY_ADDS = {
    "resnet_20": 40.6,
    "resnet_14": 26.6,
    "resnet_26": 55,
    "resnet_38": 83,
    "resnet_32": 69,
    "resnet_44": 97,
    "resnet_18": 1820,
    "resnet_34": 3660,
    "resnet_50": 4100,
    "densenet_121": 2850,
    "densenet_121_growth_24": 1640,
    "densenet_121_growth_30": 2530,
    "googlenet": 1570,
    "densenet_16": 20.0,
    "densenet_22": 31.5,
    "densenet_28": 44.5,
    "densenet_34": 58.0,
    "densenet_40": 73.0,
    "densenet_46": 89.5,
}


def test_every_preset_except_hydranets_has_a_pinned_parameter_count():
    """test_hydranet.py compares the Hydra-Res presets with a closed form."""
    assert PARAMETERS.keys() == {n for n, f in baselines.PRESETS.items() if "branches" not in f}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_the_pinned_parameter_count(preset: str):
    assert baselines.preset_costs(preset).params[-1] == PARAMETERS[preset]


@pytest.mark.parametrize("preset", PUBLISHED_PARAMETERS)
def test_parameters_equal_the_published_ones_to_the_printed_digit(preset: str):
    printed = PUBLISHED_PARAMETERS[preset]
    decimals = len(printed.split(".")[1])
    assert f"{PARAMETERS[preset] / 1e6:.{decimals}f}" == printed


@pytest.mark.parametrize("preset", PUBLISHED_MULTIPLY_ADDS)
def test_multiply_adds_are_within_one_percent_of_the_published_ones(preset: str):
    """In one of two conventions, which differ by up to 1.5% (ReLUs and pooling)."""
    costs = baselines.preset_costs(preset)
    published = PUBLISHED_MULTIPLY_ADDS[preset]
    actual = (costs.macs[-1] / 1e6, costs.published_ops[-1] / 1e6)
    assert min(abs(value / published - 1) for value in actual) < 0.01


@pytest.mark.parametrize(
    ("preset", "layers"), [("resnet_44", 44), ("resnet_mc", 62), ("densenet_mc", 52)]
)
def test_networks_have_the_number_of_layers_in_their_name(preset: str, layers: int):
    """Stem, two convolutions per residual block or one per dense layer, transitions, linear."""
    fields = baselines.PRESETS[preset]
    if fields["backbone"] == "resnet":
        assert 1 + 2 * sum(fields["depths"]) + 1 == layers
    else:
        assert 1 + sum(fields["depths"]) + len(fields["depths"][1:]) + 1 == layers


@pytest.mark.parametrize("preset", ["resnet_mc", "densenet_mc"])
def test_multi_exit_baselines_have_seven_exits_of_rising_cost(preset: str):
    costs = baselines.preset_costs(preset)
    assert len(costs.macs) == 7 and (np.diff(costs.macs, prepend=0) > 0).all()


@pytest.mark.parametrize("preset", ["quickstart_resnet_mc", "quickstart_densenet_mc"])
def test_quickstart_baselines_cost_about_as_much_as_the_quickstart(preset: str):
    quickstart, cost = (
        exit_costs(baselines.abstract(fields, 10, (32, 32, 1))).macs[-1]
        for fields in (NETWORK_PRESETS["quickstart"], baselines.PRESETS[preset])
    )
    assert cost == pytest.approx(quickstart, rel=0.25)
