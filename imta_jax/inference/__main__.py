"""Classifies images with an exported network: `python -m imta_jax.inference FOLDER cat.jpg`."""

import sys

from imta_jax.inference.command import main

sys.exit(main())
