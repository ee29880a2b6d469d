"""Figure 6: gradient equilibrium on all feature maps, on the coarsest one, or off.

    python launch.py --mode=study --config=configs/studies/equilibrium.py:quickstart \
        --workdir=runs/equilibrium

Presets as in `configs/studies/ablation.py`.
"""

from configs.studies import shared
from configs.studies.ablation import NETWORKS


def get_config(preset="cifar100"):
    base = shared.base(preset)
    dataset = preset.partition(",")[0]
    base.model.preset = NETWORKS.get(dataset, base.model.preset)
    config = shared.study("equilibrium", preset, base, baseline="off")
    config.gradient_variance_images = 512
    only = shared.NO_PHASE_TWO
    for name, label, techniques, changes in (
        ("off", "off (Eq. 1)", (), {"phase_one.equilibrium": "off"}),
        ("all", "GE, all maps (Eq. 5)", ("GE",), {"phase_one.equilibrium": "all"}),
        ("coarsest", "GE, coarsest map", ("GE",), {"phase_one.equilibrium": "coarsest"}),
        (
            "averaged",
            "off, averaged loss",
            (),
            {"phase_one.equilibrium": "off", "phase_one.exit_losses": "mean"},
        ),
    ):
        shared.add_variant(config, name, label, techniques, changes | only)
    return config.lock()
