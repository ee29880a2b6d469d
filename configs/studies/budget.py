"""Figures 2, 3 and 5: accuracy against the compute that a budget allows, and static networks.

    python launch.py --mode=study --config=configs/studies/budget.py:cifar10 --workdir=runs/budget

Presets as in `configs/studies/ablation.py`.
"""

from configs.studies import shared

# The paper's networks of each figure: adaptive ones, and those with one exit. The quickstart's are
# ours: what the paper claims of other networks than MSDNet, tried.
ADAPTIVE = {
    "quickstart": ("quickstart", "quickstart_resnet_mc", "quickstart_densenet_mc"),
    "cifar10": ("cifar_6_exits", "cifar_8_exits"),
    "cifar100": ("cifar_4_exits", "cifar_5_exits", "cifar_6_exits", "cifar_8_exits"),
    "imagenet": ("imagenet_step_4", "imagenet_step_6", "imagenet_step_7"),
}
# Those of CIFAR are the depths whose costs are the points of the figures (by multiply-adds).
_DENSENETS = tuple(f"densenet_{depth}" for depth in (16, 22, 28, 34, 40, 46))
STATIC = {
    "quickstart": (),
    "cifar10": ("resnet_20", "resnet_32", "resnet_44", *_DENSENETS),
    "cifar100": ("resnet_14", "resnet_26", "resnet_38", "resnet_44", *_DENSENETS),
    "imagenet": (
        "resnet_18",
        "resnet_34",
        "resnet_50",
        "densenet_121_growth_24",
        "densenet_121_growth_30",
        "densenet_121",
        "googlenet",
    ),
}


def _label(network):
    """What kind of network, and which."""
    for part, kind in (("resnet", "ResNet"), ("densenet", "DenseNet")):
        if part in network:
            return kind, ""
    return "MSDNet", ", " + network.removeprefix("cifar_").removeprefix("imagenet_").replace(
        "_", " "
    )


def get_config(preset="cifar100"):
    base = shared.base(preset)
    dataset = preset.partition(",")[0]
    config = shared.study("budget", preset, base, baseline=f"none_{ADAPTIVE[dataset][0]}")
    for network in ADAPTIVE[dataset]:
        kind, name = _label(network)
        same = {"model.preset": network}
        shared.add_technique_arm(
            config,
            f"none_{network}",
            (),
            f"{kind}{name}",
            same,
            phase_two=False,
            against=f"none_{network}",
        )
        shared.add_technique_arm(
            config,
            f"all_{network}",
            ("GE", "ISC", "OFA"),
            f"Ours on {kind}{name}",
            same,
            against=f"none_{network}",
        )
    for network in STATIC[dataset]:
        changes = {"model.preset": network} | shared.SINGLE_EXIT
        shared.add_arm(config, network, network, None, changes, against=network)
    return config.lock()
