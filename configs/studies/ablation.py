"""Tables 2 and 3, Figures 4 and 7: the gain of each of the three techniques.

    python launch.py --mode=study --config=configs/studies/ablation.py:quickstart \
        --workdir=runs/ablation

Presets: `cifar100` (default, Table 2), `imagenet` (Table 3), `cifar10`, `quickstart`. Presets of
the dataset's config may follow after a comma: `cifar100,short`.
"""

from configs.studies import shared

NETWORKS = {"cifar10": "cifar_5_exits", "cifar100": "cifar_5_exits"}


def get_config(preset="cifar100"):
    base = shared.base(preset)
    dataset = preset.partition(",")[0]
    base.model.preset = NETWORKS.get(dataset, base.model.preset)
    config = shared.study("ablation", preset, base, baseline="none")
    # The five rows of the paper's tables.
    shared.add_technique_variant(config, "none", (), "none", phase_two=False)
    shared.add_technique_variant(config, "ge", ("GE",), phase_two=False)
    shared.add_technique_variant(config, "isc", ("ISC",))
    shared.add_technique_variant(config, "ofa", ("OFA",))
    shared.add_technique_variant(config, "all", ("GE", "ISC", "OFA"))
    # The rest of the factorial design, and variants whose phase II only continues training.
    shared.add_technique_variant(config, "longer", (), "none, phase II only")
    shared.add_technique_variant(config, "ge_longer", ("GE",), "GE, phase II only")
    shared.add_technique_variant(config, "isc_ofa", ("ISC", "OFA"))
    shared.add_technique_variant(config, "ge_isc", ("GE", "ISC"))
    shared.add_technique_variant(config, "ge_ofa", ("GE", "OFA"))
    return config.lock()
