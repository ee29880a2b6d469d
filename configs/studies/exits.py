"""Table 1: each exit of the 7-exit network, plain and with all three techniques.

    python launch.py --mode=study --config=configs/studies/exits.py --workdir=runs/exits
    python launch.py --mode=study --config=configs/studies/exits.py --workdir=runs/exits \
        --config.seeds="()"

The second command trains nothing and records the costs. Presets as in
`configs/studies/ablation.py`.
"""

from configs.studies import shared

HYDRA_BRANCHES = (1, 2, 3, 4, 5, 6, 7, 9)


def get_config(preset="cifar100"):
    base = shared.base(preset)
    config = shared.study("exits", preset, base, baseline="none")
    shared.add_technique_variant(config, "none", (), "MSDNet", phase_two=False)
    shared.add_technique_variant(config, "all", ("GE", "ISC", "OFA"), "Ours")
    if not preset.startswith(("quickstart", "imagenet")):
        for branches in HYDRA_BRANCHES:
            changes = {"model.preset": f"hydra_res_{branches}"} | shared.SINGLE_EXIT
            shared.add_variant(config, f"hydra_{branches}", f"Hydra-Res-d{branches}", None, changes)
    return config.lock()
