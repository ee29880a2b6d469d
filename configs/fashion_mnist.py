"""Fashion-MNIST (60,000 + 10,000 images) from TFDS, with a shortened CIFAR schedule.

    python launch.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Presets: `paper` (default), `published`, `baseline`.
"""

from configs import common


def get_config(preset="paper"):
    config = common.assemble(
        model=common.network("cifar_4_exits"),
        data=common.data("fashion_mnist", validation_examples=5000),
        phase_one=common.phase_one(total_epochs=60, batch_size=64),
        phase_two=common.phase_two(total_epochs=30, batch_size=64),
        evaluation=common.evaluation(batch_size=1000),
    )
    # The best of configs/studies/distillation.py on validation images of Fashion-MNIST.
    config.phase_two.update(alpha=0.1, temperature_squared=True)
    return common.with_preset(config, preset)
