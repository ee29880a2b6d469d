"""Prints the table of a network: `python -m imta_jax.models cifar_7_exits --classes=100`."""

from imta_jax.models.network_table import main

main()
