"""CIFAR-10 as in the paper (Sec. 4.1): batch 64, 300 + 180 epochs, 5,000 validation images.

    python launch.py --config=configs/cifar10.py --workdir=runs/cifar10
    python launch.py --config=configs/cifar10.py:published --workdir=runs/published \
        --config.model.preset=cifar_8_exits --config.phase_one.total_epochs=30

Networks (--config.model.preset): cifar_4_exits to cifar_8_exits, cifar_even_7_exits,
cifar_even_10_exits. Presets: `paper` (default), `published`, `baseline`, and `short` (a tenth of
the epochs). Several presets are joined by commas: `published,short`.
"""

from configs import common


def _short(config):
    config.phase_one.total_epochs //= 10
    config.phase_two.total_epochs //= 10


def get_config(preset="paper"):
    config = common.assemble(
        model=common.network("cifar_7_exits"),
        data=common.data("cifar10", validation_examples=5000),
        phase_one=common.phase_one(total_epochs=300, batch_size=64),
        phase_two=common.phase_two(total_epochs=180, batch_size=64),
        evaluation=common.evaluation(batch_size=1000),
    )
    return common.with_preset(config, preset, {"short": _short})
