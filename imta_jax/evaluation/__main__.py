"""Compares threshold methods: `python -m imta_jax.evaluation val.npz test.npz --costs=1e6,2e6`."""

import sys

from imta_jax.runtime.interrupts import interrupts_reported

if __name__ == "__main__":
    with interrupts_reported("python -m imta_jax.evaluation"):
        from imta_jax.evaluation.command import main

        sys.exit(main())
