"""A small adaptive network on the images in the package, in minutes on a laptop's processor.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Presets: `paper` (default), `published`, `baseline`; `configs/quickstart.py:published`.
"""

from configs import common


def get_config(preset="paper"):
    config = common.assemble(
        model=common.network("quickstart"),
        images=common.data("fashion_mnist_small", validation_examples=1000),
        first=common.phase_one(total_epochs=5, batch_size=64),
        second=common.phase_two(total_epochs=2, batch_size=64),
        judged=common.evaluation(batch_size=200),
    )
    # In so few epochs random crops cost more than they teach; mirror images help.
    config.data.crop_padding = 0
    return common.with_preset(config, preset)
