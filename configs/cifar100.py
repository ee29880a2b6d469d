"""CIFAR-100 as in the paper (Sec. 4.1): batch 64, 300 + 180 epochs, 5,000 validation images.

    python launch.py --config=configs/cifar100.py --workdir=runs/cifar100
    python launch.py --config=configs/cifar100.py:published,short --workdir=runs/published \
        --config.model.preset=cifar_8_exits --config.phase_one.total_epochs=30

Networks and presets: see `cifar10.py`. The default network is that of the paper's Table 1.
"""

from configs import cifar10


def get_config(preset="paper"):
    config = cifar10.get_config(preset)
    config.data.source = "cifar100"
    return config
