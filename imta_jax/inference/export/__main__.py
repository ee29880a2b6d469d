"""Exports a run: `python -m imta_jax.inference.export RUN FOLDER`."""

import sys

from imta_jax.runtime.interrupts import interrupts_reported

if __name__ == "__main__":
    with interrupts_reported("python -m imta_jax.inference.export"):
        from imta_jax.inference.export.run_export import main

        sys.exit(main())
