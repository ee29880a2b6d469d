"""The former name of `python -m imta_jax.studies`, kept for scripts that use it."""

import runpy
import sys

print("python -m imta_jax.report is now python -m imta_jax.studies", file=sys.stderr)
runpy.run_module("imta_jax.studies", run_name="__main__")
