"""Shipped configs by name, from Python."""

import pytest

import imta_jax
from configs import cifar100
from configs.studies import ablation


def test_shipped_config_is_the_one_of_the_command_line():
    assert imta_jax.shipped_config("cifar100") == cifar100.get_config()
    assert imta_jax.shipped_config("cifar100:published") == cifar100.get_config("published")
    assert imta_jax.shipped_config("studies/ablation") == ablation.get_config()


def test_unknown_config_or_preset_is_rejected():
    with pytest.raises(ValueError, match=r"config 'quickstrat'.*first: quickstart"):
        imta_jax.shipped_config("quickstrat")
    with pytest.raises(ValueError, match=r"quickstart:paepr.*paper"):
        imta_jax.shipped_config("quickstart:paepr")
