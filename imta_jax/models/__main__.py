"""Prints a planned network: `python -m imta_jax.models cifar_7_exits --classes=100`."""

from imta_jax.models.plan_table import main

main()
