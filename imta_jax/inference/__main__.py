"""Classifies images with an exported network: `python -m imta_jax.inference FOLDER cat.jpg`."""

import sys

from imta_jax.runtime.interrupts import interrupts_reported

if __name__ == "__main__":
    with interrupts_reported("python -m imta_jax.inference"):
        from imta_jax.inference.command import main

        sys.exit(main())
