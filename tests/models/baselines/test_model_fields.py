"""The fields of `config.model` that the baselines accept, and errors for invalid ones."""

import baseline_networks as baselines
import pytest
from flax import nnx

from imta_jax.models import build_classifier


@pytest.mark.parametrize(
    ("backbone", "change", "message"),
    [
        ("resnet", {"growth_rate": 4}, "'resnet': 'growth_rate'"),
        ("resnet", {"num_exits": 3}, "'resnet': 'num_exits'"),
        ("densenet", {"branches": 4}, "'densenet': 'branches'"),
        ("hydranet", {"exits": (1,)}, "'hydranet': 'exits'"),
        ("resnet", {"stem": "imagnet"}, r"config\.model\.stem 'imagnet'.*: imagenet"),
        ("resnet", {"channels": 0}, r"config\.model\.channels.*\b0"),
        ("resnet", {"depths": (1, 0)}, r"config\.model\.depths.*\(1, 0\)"),
        ("resnet", {"depths": 3}, r"config\.model\.depths.*\b3"),
        ("resnet", {"exits": (3,)}, r"config\.model\.exits.*1 to 2.*\(3,\)"),
        ("resnet", {"exits": (2, 1)}, r"config\.model\.exits.*\(2, 1\)"),
        ("densenet", {"reduction": 0.0}, r"config\.model\.reduction.*0\.0"),
        ("hydranet", {"active_branches": 5}, r"config\.model\.active_branches.*branches=4.*5"),
        ("hydranet", {"gate_weight": -1.0}, r"config\.model\.gate_weight.*-1\.0"),
        ("hydranet", {"depths": (1, 1)}, r"config\.model\.depths.*3.*\(1, 1\)"),
        (
            "resnet",
            {"initialization": "torch"},
            r"model\.initialization 'torch'.*: pytorch",
        ),
    ],
)
def test_invalid_fields_are_rejected_by_name(backbone: str, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        baselines.tiny(backbone, **change)


def test_missing_fields_are_listed():
    fields = {"backbone": "resnet", "channels": 4}
    shape = baselines.IMAGE_SHAPE
    with pytest.raises(ValueError, match=r"config\.model.*depths, stem"):
        build_classifier(fields, num_classes=2, image_shape=shape, rngs=nnx.Rngs(0))
