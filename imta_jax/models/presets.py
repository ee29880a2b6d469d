"""The named networks: plain data, so that a preset is one line and its costs can be pinned.

A preset fills the fields of a config's `model` part; a field that is given besides it wins.
"""

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
    # Sec. 4.2, exit i at layer t*i+3 (paper) or t*i (reference code, its published costs).
    "imagenet_step_4": _IMAGENET | {"base": 7, "step": 4},
    "imagenet_step_6": _IMAGENET | {"base": 9, "step": 6},
    "imagenet_step_7": _IMAGENET | {"base": 10, "step": 7},
    "imagenet_step_4_published": _IMAGENET | {"base": 4, "step": 4},
    "imagenet_step_6_published": _IMAGENET | {"base": 6, "step": 6},
    "imagenet_step_7_published": _IMAGENET | {"base": 7, "step": 7},
    # Our own, small enough to train on a laptop's processor in minutes (the README's quickstart).
    "quickstart": _EVEN | {"num_exits": 4, "base": 1, "step": 1, "channels": 8, "growth_rate": 4},
}
# fmt: on
