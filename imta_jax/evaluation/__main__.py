"""Compares threshold methods: `python -m imta_jax.evaluation val.npz test.npz --costs=1e6,2e6`."""

from imta_jax.evaluation.command import main

main()
