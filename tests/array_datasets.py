"""Arrays and `config.data` for the tests of `imta_jax.data.sources`."""

import numpy as np

RNG = np.random.default_rng(0)
ARRAYS = {
    "train_images": RNG.integers(0, 256, (40, 28, 28), np.uint8),
    "train_labels": np.arange(40) % 4,
    "test_images": RNG.integers(0, 256, (8, 28, 28), np.uint8),
    "test_labels": np.arange(8) % 4,
}


def config(source, **changes):
    fields = {"data_dir": "", "download": False, "validation_examples": 8, "validation_seed": 0}
    return {"source": str(source), **fields, **changes}


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
