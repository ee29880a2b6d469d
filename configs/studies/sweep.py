"""A sweep: all combinations of values of config fields, or random ones, in one table.

    python launch.py --mode=study --config=configs/studies/sweep.py:quickstart \
        --workdir=runs/sweep --config.sweep.fields.phase_one.learning_rate="(0.05, 0.1, 0.2)"
    python launch.py --mode=study --config=configs/studies/sweep.py:quickstart \
        --workdir=runs/random --config.sweep.mode=random --config.sweep.samples=8 \
        --config.sweep.fields.phase_one.learning_rate="('log', 0.01, 0.5)"

The table ranks the settings by validation accuracy. More values, samples or seeds may be added
later: finished runs are kept. Presets as in `configs/studies/ablation.py`.
"""

from ml_collections import ConfigDict

from configs.studies import shared

# Values of the fields that are swept, nested as in the base config.
FIELDS = {"phase_one": {"learning_rate": (0.05, 0.1, 0.2)}}


def get_config(preset="cifar100"):
    config = shared.study("sweep", preset, shared.base(preset), baseline="")
    config.seeds = (0,)
    config.sweep = ConfigDict()
    # "grid" for all combinations of values, or "random".
    config.sweep.mode = "grid"
    # random: number of settings.
    config.sweep.samples = 16
    # random: seed of the settings.
    config.sweep.seed = 0
    # The values of each field, as a tuple. random: also a range, ("uniform", low, high),
    # ("log", low, high) or ("integer", low, high).
    config.sweep.fields = ConfigDict(FIELDS)
    config.lock()
    config.sweep.fields.unlock()
    return config
