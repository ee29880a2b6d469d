"""A tiny network, images and an export for the tests of inference."""

import numpy as np
import pytest
import tiny_run
from flax import nnx
from PIL import Image

from imta_jax.data import NO_AUGMENTATION
from imta_jax.inference import OperatingPoint, export_classifier
from imta_jax.inference.export import golden
from imta_jax.models import build_classifier, with_collaborative_heads

SHAPE, CLASSES = (16, 16, 1), ("ant", "bee", "cow", "dog", "eel")
PIXELS = {"mean": (0.4,), "std": (0.3,)}
CHEAP = OperatingPoint(0.4, (0.3, 0.3, -1e8), (0.9, 0.1, 0.0), 70.0, 69.0)
ACCURATE = OperatingPoint(0.8, (0.99, 0.99, -1e8), (0.1, 0.1, 0.8), 80.0, 79.0)
PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture(autouse=True)
def no_passed_checks(monkeypatch, tmp_path_factory):
    """Golden images are checked again in every test."""
    monkeypatch.setattr(golden, "PASSED_DIR", tmp_path_factory.mktemp("passed"))


@pytest.fixture(scope="session")
def phase_one():
    """A phase-I network with 3 exits."""
    model = {**tiny_run.NETWORK, "num_exits": 3}
    return build_classifier(model, num_classes=5, image_shape=SHAPE, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def classifier(phase_one):
    """The phase-II network."""
    heads = {"transfer": "linear", "start": "fresh"}
    return with_collaborative_heads(phase_one, heads, num_classes=5, rngs=nnx.Rngs(1))


@pytest.fixture(scope="session")
def images():
    """uint8 [37, 16, 16, 1]."""
    return np.random.default_rng(0).integers(0, 256, (37, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="session")
def export():
    """A function that exports a classifier to a folder."""

    def write(classifier, folder, **changes):
        fields = {
            "points": [ACCURATE, CHEAP],
            "class_names": CLASSES,
            "preprocessing": NO_AUGMENTATION,
            "platforms": PLATFORMS,
            **PIXELS,
        }
        export_classifier(classifier, folder, **fields | changes)
        return folder

    return write


@pytest.fixture(scope="session")
def exported_folder(classifier, export, tmp_path_factory):
    """An export. Tests must not change it."""
    return export(classifier, tmp_path_factory.mktemp("exports") / "export")


@pytest.fixture
def png_folder(images, tmp_path):
    """A folder with five images as 0.png to 4.png."""
    root = tmp_path / "images"
    root.mkdir()
    for i, image in enumerate(images[:5]):
        Image.fromarray(image[..., 0]).save(root / f"{i}.png")
    return root
