"""Prints the table of a network: `python -m imta_jax.models cifar_7_exits --classes=100`."""

import sys

from imta_jax.runtime.interrupts import interrupts_reported

if __name__ == "__main__":
    with interrupts_reported("python -m imta_jax.models"):
        from imta_jax.models.network_table import main

        sys.exit(main())
