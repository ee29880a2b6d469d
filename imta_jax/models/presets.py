"""Named networks. A preset sets fields of `config.model`; fields that are given override it."""

from collections.abc import Mapping
from typing import Any

_CIFAR: dict[str, Any] = {
    "backbone": "msdnet",
    "stem": "cifar",
    "channels": 16,
    "growth_rate": 6,
    "growth_factors": (1, 2, 4),
    "bottleneck_factors": (1, 2, 4),
    "prune": "max",
    "reduction": 0.5,
}
_LIN_GROW = _CIFAR | {"step_mode": "lin_grow", "base": 1, "step": 1}
_EVEN = _CIFAR | {"step_mode": "even", "base": 4, "step": 2}
_IMAGENET = _CIFAR | {
    "stem": "imagenet",
    "channels": 32,
    "growth_rate": 16,
    "growth_factors": (1, 2, 4, 4),
    "bottleneck_factors": (1, 2, 4, 4),
    "step_mode": "even",
    "num_exits": 5,
}

# The baselines of the paper (Sec. 4, "Compared Models").
_RESNET: dict[str, Any] = {"backbone": "resnet", "stem": "cifar", "channels": 16}
_IMAGENET_RESNET = _RESNET | {"stem": "imagenet", "channels": 64}
_DENSENET: dict[str, Any] = {"backbone": "densenet", "stem": "cifar", "reduction": 0.5}
_DENSENET_BC = _DENSENET | {"channels": 24, "growth_rate": 12, "bottleneck": True}
_DENSENET_121 = _DENSENET_BC | {"stem": "imagenet", "depths": (6, 12, 24, 16)}
_HYDRA: dict[str, Any] = {"backbone": "hydranet", "channels": 16, "gate_weight": 0.1}
_HYDRA_RES = _HYDRA | {"branches": 20, "active_branches": 11}

# fmt: off
NETWORK_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Paper Sec. 4.1: depth 10, 15, 21, 28 (Table 1) and 36.
    "cifar_4_exits": _LIN_GROW | {"num_exits": 4},
    "cifar_5_exits": _LIN_GROW | {"num_exits": 5},
    "cifar_6_exits": _LIN_GROW | {"num_exits": 6},
    "cifar_7_exits": _LIN_GROW | {"num_exits": 7},
    "cifar_8_exits": _LIN_GROW | {"num_exits": 8},
    # The reference code's block-wise even networks.
    "cifar_even_7_exits": _EVEN | {"num_exits": 7},
    "cifar_even_10_exits": _EVEN | {"num_exits": 10},
    # The network on which detached feature halves were published (56 to 341 M multiply-adds).
    "cifar_dfs_7_exits": _EVEN | {"num_exits": 7, "growth_rate": 16},
    # Sec. 4.2, exit i at layer t*i+3 (paper) or t*i (reference code, its published costs).
    "imagenet_step_4": _IMAGENET | {"base": 7, "step": 4},
    "imagenet_step_6": _IMAGENET | {"base": 9, "step": 6},
    "imagenet_step_7": _IMAGENET | {"base": 10, "step": 7},
    "imagenet_step_4_published": _IMAGENET | {"base": 4, "step": 4},
    "imagenet_step_6_published": _IMAGENET | {"base": 6, "step": 6},
    "imagenet_step_7_published": _IMAGENET | {"base": 7, "step": 7},
    # Our own, small enough to train on a laptop's CPU in minutes. The network of the README's
    # quickstart has exits on narrow maps of 4x4 positions, so that its first exit is clearly below
    # its last. The studies on the packaged images use the wider one, whose exits are nearly equal.
    "fashion_mnist_4_exits": _EVEN | {
        "num_exits": 4, "base": 1, "step": 3, "channels": 2, "growth_rate": 8,
        "growth_factors": (1, 1, 1, 1), "bottleneck_factors": (1, 1, 1, 1), "reduction": 0.0,
    },
    "quickstart": _EVEN | {"num_exits": 4, "base": 1, "step": 1, "channels": 8, "growth_rate": 4},
    # He et al.'s 6n+2 layers on CIFAR, n blocks per resolution, and theirs on ImageNet.
    **{f"resnet_{6 * n + 2}": _RESNET | {"depths": (n, n, n)} for n in range(2, 8)},
    "resnet_18": _IMAGENET_RESNET | {"depths": (2, 2, 2, 2)},
    "resnet_34": _IMAGENET_RESNET | {"depths": (3, 4, 6, 3)},
    "resnet_50": _IMAGENET_RESNET | {"depths": (3, 4, 6, 3), "bottleneck": True},
    # CIFAR DenseNet-BC of growth 12 and 6n+4 layers, n = 2 to 7. Their costs are within 1.3 % of
    # the six points of the published figure: 20, 31.5, 44.5, 58, 73 and 89.5 M.
    **{f"densenet_{6 * n + 4}": _DENSENET_BC | {"depths": (n, n, n)} for n in range(2, 8)},
    # ImageNet. The two smaller networks of the published figure (1.64 and 2.53 G multiply-adds)
    # are not specified; 121 layers of a smaller growth cost 0.6 % less.
    "densenet_121": _DENSENET_121 | {"growth_rate": 32, "channels": 64},
    "densenet_121_growth_24": _DENSENET_121 | {"growth_rate": 24, "channels": 48},
    "densenet_121_growth_30": _DENSENET_121 | {"growth_rate": 30, "channels": 60},
    "googlenet": {"backbone": "googlenet"},
    # Hydra-Res of Table 1, reconstructed from its costs (hydranet.py); d blocks per resolution.
    **{f"hydra_res_{d}": _HYDRA_RES | {"depths": (d, d, d)} for d in (1, 2, 3, 4, 5, 6, 7, 9)},
    # Multi-exit ResNet and DenseNet of 62 and 52 layers, seven exits each.
    "resnet_mc": _RESNET | {"depths": (10, 10, 10), "exits": (4, 8, 14, 18, 24, 28)},
    "densenet_mc": _DENSENET | {
        "channels": 16, "growth_rate": 12, "depths": (16, 16, 16), "bottleneck": False,
        "reduction": 1.0, "exits": (6, 12, 22, 28, 38, 44),
    },
    # Our own, as small as "quickstart", for the techniques on other backbones.
    "quickstart_resnet_mc": _RESNET | {"channels": 8, "depths": (1, 1, 6), "exits": (3, 4, 6)},
    "quickstart_densenet_mc": _DENSENET | {
        "channels": 8, "growth_rate": 8, "depths": (1, 1, 11), "bottleneck": False,
        "reduction": 1.0, "exits": (3, 6, 9),
    },
    "quickstart_hydra": _HYDRA | {
        "channels": 4, "depths": (1, 1, 1), "branches": 4, "active_branches": 2,
    },
}
# fmt: on
