"""One-for-all distillation: alpha, temperature, teacher and reduction.

The paper states neither alpha nor the temperature. Our defaults were chosen by this study, on
validation images. All variants share one phase I per seed and one pass through its backbone.

    python launch.py --mode=study --config=configs/studies/distillation.py:quickstart \
        --workdir=runs/distillation

Presets as in `configs/studies/ablation.py`.
"""

import itertools

from configs.studies import shared
from configs.studies.ablation import NETWORKS

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
TEMPERATURES = (1.0, 2.0, 4.0)
TEACHERS = {"own": "own_last_exit", "first": "phase_one_last_exit"}
# The divergence summed over classes (Eq. 8), the same times T^2, and averaged over classes times
# T^2 as in the published code.
CONVENTIONS = {"sum": ("batch", False), "sum_t2": ("batch", True), "mean_t2": ("elements", True)}


def get_config(preset="cifar100"):
    base = shared.base(preset)
    dataset = preset.partition(",")[0]
    base.model.preset = NETWORKS.get(dataset, base.model.preset)
    # Settings are compared by their exits, so a coarse budget curve suffices.
    base.evaluation.quotas = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    config = shared.study("distillation", preset, base, baseline="off")
    shared.add_technique_variant(config, "off", ("GE", "ISC"), "no distillation")
    grid = itertools.product(TEACHERS, CONVENTIONS, ALPHAS, TEMPERATURES)
    for teacher, convention, alpha, temperature in grid:
        reduction, squared = CONVENTIONS[convention]
        if squared and reduction == "batch" and temperature == 1.0:
            continue  # Equal to the variant without the square.
        shared.add_variant(
            config,
            f"{teacher}_{convention}_a{10 * alpha:02.0f}_t{temperature:.0f}",
            f"alpha {alpha}, T {temperature:g}, {teacher}, {convention}",
            ("GE", "ISC", "OFA"),
            {
                "phase_two.alpha": alpha,
                "phase_two.temperature": temperature,
                "phase_two.teacher": TEACHERS[teacher],
                "phase_two.reduction": reduction,
                "phase_two.temperature_squared": squared,
            },
        )
    return config.lock()
