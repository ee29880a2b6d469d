"""Trains, evaluates and reports an adaptive classifier. The command `imta-jax` does the same.

python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
python launch.py --config=configs/cifar100.py:published --workdir=runs/cifar100 --mode=phase_one \
    --config.model.preset=cifar_5_exits --config.phase_one.total_epochs=3
"""

from imta_jax.runtime.huge_pages import restart_with_huge_pages
from imta_jax.runtime.preemption import hold_signals

if __name__ == "__main__":
    # Both come before the imports of the next line, which take longer.
    hold_signals()
    restart_with_huge_pages()
    from imta_jax.cli.main import start

    start()
