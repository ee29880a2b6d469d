"""Image files for the tests of the pipelines."""

import numpy as np
import pytest
from random_area_crops import load
from sample_images import make_image, write


@pytest.fixture(scope="session")
def image_files(tmp_path_factory):
    """23 training and 9 test images, of sizes that are decoded at 1/1 to 1/8 of the resolution."""
    sizes = np.random.default_rng(7).integers(40, 420, (32, 2)).tolist()
    sizes[:4] = (60, 90), (900, 1300), (700, 720), (33, 700)
    root = tmp_path_factory.mktemp("images")
    for i, size in enumerate(sizes):
        ending = "png" if i % 5 == 3 else "jpg"
        split = "train" if i < 23 else "test"
        write(root, {f"{split}/{i % 2}/{i:02}.{ending}": make_image(*size, i, cells=3)})
    return load(
        root,
        image_size=32,
        resize=36,
        validation_split="test",
        test_split="hold_out",
        test_examples=2,
    )
