"""A folder with one prepared version of a TFDS dataset, local or in a bucket.

For example `.../imagenet2012/5.1.0`, with its features.json. It is read without the dataset's code.
"""

from pathlib import Path

from imta_jax.data.source_validation import SourceData
from imta_jax.data.sources.request import SourceRequest
from imta_jax.data.sources.storage import absolute, is_path, is_remote, translate_errors
from imta_jax.data.sources.tfds import import_tfds, warn_if_name_is_ambiguous
from imta_jax.data.sources.tfds_builder import described_by_tfds, read_builder
from imta_jax.data.tensorflow_import import has_tensorflow, import_tensorflow
from imta_jax.errors import MissingFileError


def accepts(source: str) -> bool:
    """Whether the source is the path of a folder with a features.json."""
    if not is_path(source):
        return False
    if not is_remote(source):
        return Path(absolute(source), "features.json").exists()
    if not has_tensorflow():
        return False
    with translate_errors(source):
        return import_tensorflow().io.gfile.exists(f"{absolute(source)}/features.json")


def read(request: SourceRequest) -> SourceData:
    """Reads the folder; see `sources.load_source`."""
    tfds = import_tfds(request.source)
    warn_if_name_is_ambiguous(request.source)
    path = absolute(request.source)
    with translate_errors(path):
        problem = f"{path}: features.json or dataset_info.json is missing or damaged"
        with described_by_tfds(problem, "copy the folder again, or prepare the dataset again"):
            builder = tfds.builder_from_directory(path)
        return read_builder(
            builder, request, lambda reason: MissingFileError(f"{path} is incomplete: {reason}")
        )
