"""A small adaptive network on images included in the package; minutes on a laptop CPU.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Presets: `paper` (default), `published`, `baseline`; `configs/quickstart.py:published`.
"""

from configs import common


def get_config(preset="paper"):
    config = common.assemble(
        model=common.network("fashion_mnist_4_exits"),
        data=common.data("fashion_mnist_small", validation_examples=1000),
        phase_one=common.phase_one(total_epochs=6, batch_size=64),
        phase_two=common.phase_two(total_epochs=2, batch_size=64),
        evaluation=common.evaluation(batch_size=200),
    )
    # With so few epochs random crops lower the accuracy; flips raise it.
    config.data.crop_padding = 0
    # The best of configs/studies/distillation.py on validation images of Fashion-MNIST.
    config.phase_two.update(alpha=0.1, temperature_squared=True)
    return common.with_preset(config, preset)
