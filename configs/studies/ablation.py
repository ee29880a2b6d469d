"""Tables 2 and 3, Figures 4 and 7: what each of the three techniques adds.

    python launch.py --mode=study --config=configs/studies/ablation.py:quickstart \
        --workdir=runs/ablation

Presets: `cifar100` (default, Table 2), `imagenet` (Table 3), `cifar10`, `quickstart`; with presets
of that dataset's own config after a comma, `cifar100,short`.
"""

from configs.studies import shared

NETWORKS = {"cifar10": "cifar_5_exits", "cifar100": "cifar_5_exits"}


def get_config(preset="cifar100"):
    base = shared.base(preset)
    dataset = preset.partition(",")[0]
    base.model.preset = NETWORKS.get(dataset, base.model.preset)
    config = shared.study("ablation", preset, base, baseline="none")
    # The paper's five rows ...
    shared.add_technique_arm(config, "none", (), "none", phase_two=False)
    shared.add_technique_arm(config, "ge", ("GE",), phase_two=False)
    shared.add_technique_arm(config, "isc", ("ISC",))
    shared.add_technique_arm(config, "ofa", ("OFA",))
    shared.add_technique_arm(config, "all", ("GE", "ISC", "OFA"))
    # ... and what completes the factorial, with a second phase that only trains on.
    shared.add_technique_arm(config, "longer", (), "none, phase II alone")
    shared.add_technique_arm(config, "ge_longer", ("GE",), "GE, phase II alone")
    shared.add_technique_arm(config, "isc_ofa", ("ISC", "OFA"))
    shared.add_technique_arm(config, "ge_isc", ("GE", "ISC"))
    shared.add_technique_arm(config, "ge_ofa", ("GE", "OFA"))
    return config.lock()
