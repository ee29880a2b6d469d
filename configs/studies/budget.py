"""Figures 2, 3 and 5: accuracy against the compute that a budget allows, and static networks.

    python launch.py --mode=study --config=configs/studies/budget.py:cifar10 --workdir=runs/budget

Presets as in `configs/studies/ablation.py`.
"""

from configs.studies import shared

# The paper's networks of each figure: adaptive ones, and those with one exit.
ADAPTIVE = {
    "quickstart": ("quickstart",),
    "cifar10": ("cifar_6_exits", "cifar_8_exits"),
    "cifar100": ("cifar_4_exits", "cifar_5_exits", "cifar_6_exits", "cifar_8_exits"),
    "imagenet": ("imagenet_step_4", "imagenet_step_6", "imagenet_step_7"),
}
STATIC = {"quickstart": (), "cifar10": (), "cifar100": (), "imagenet": ()}


def get_config(preset="cifar100"):
    base = shared.base(preset)
    dataset = preset.partition(",")[0]
    config = shared.study("budget", preset, base, baseline=f"none_{ADAPTIVE[dataset][0]}")
    for network in ADAPTIVE[dataset]:
        name = network.removeprefix("cifar_").removeprefix("imagenet_").replace("_", " ")
        same = {"model.preset": network}
        shared.add_technique_arm(
            config,
            f"none_{network}",
            (),
            f"MSDNet, {name}",
            same,
            phase_two=False,
            against=f"none_{network}",
        )
        shared.add_technique_arm(
            config,
            f"all_{network}",
            ("GE", "ISC", "OFA"),
            f"Ours, {name}",
            same,
            against=f"none_{network}",
        )
    for network in STATIC[dataset]:
        changes = {"model.preset": network} | shared.SINGLE_EXIT
        shared.add_arm(config, network, network, None, changes, against=network)
    return config.lock()
