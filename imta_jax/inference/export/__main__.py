"""Exports a run: `python -m imta_jax.inference.export RUN FOLDER`."""

import sys

from imta_jax.inference.export.run_export import main

if __name__ == "__main__":
    sys.exit(main())
