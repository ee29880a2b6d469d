"""Figures 2, 3 and 5: accuracy against mean cost under a budget, with static networks.

    python launch.py --mode=study --config=configs/studies/budget.py:cifar10 --workdir=runs/budget

Presets as in `configs/studies/ablation.py`.
"""

from configs.studies import shared

# The adaptive networks of the paper's figures. The quickstart has networks other than MSDNet, for
# which the paper claims gains without showing them.
ADAPTIVE = {
    "quickstart": ("quickstart", "quickstart_resnet_mc", "quickstart_densenet_mc"),
    "cifar10": ("cifar_6_exits", "cifar_8_exits"),
    "cifar100": ("cifar_4_exits", "cifar_5_exits", "cifar_6_exits", "cifar_8_exits"),
    "imagenet": ("imagenet_step_4", "imagenet_step_6", "imagenet_step_7"),
}
# The static networks, with one exit. The DenseNet depths are those whose multiply-adds match the
# points of the CIFAR figures.
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
    """Kind and name of a network, for labels."""
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
        shared.add_technique_variant(
            config,
            f"none_{network}",
            (),
            f"{kind}{name}",
            same,
            phase_two=False,
            against=f"none_{network}",
        )
        shared.add_technique_variant(
            config,
            f"all_{network}",
            ("GE", "ISC", "OFA"),
            f"Ours on {kind}{name}",
            same,
            against=f"none_{network}",
        )
    for network in STATIC[dataset]:
        changes = {"model.preset": network} | shared.SINGLE_EXIT
        shared.add_variant(config, network, network, None, changes, against=network)
    return config.lock()
