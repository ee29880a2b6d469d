"""Datasets that are part of the package."""

from pathlib import Path

from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources.npz import read_npz
from imta_jax.data.sources.request import SourceRequest

_FOLDER = Path(__file__).parent.with_name("embedded")
NAMES = ("fashion_mnist_small",)


def accepts(source: str) -> bool:
    """Whether the source is one of `NAMES`."""
    return source in NAMES


def read(request: SourceRequest) -> SourceData:
    """Reads the dataset; see `sources.load_source`."""
    return read_npz(_FOLDER / f"{request.source}.npz", request)
