"""The safetensors format of an export: the variables of a classifier by name.

    model.safetensors   parameters and BatchNorm statistics, float32, by their path in the network
    manifest.json       exits, operating points, preprocessing, versions
    SHA256SUMS          checksums of the other files

`config.phase_one.init_from` and `runtime.array_files.read_safetensors` read the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.manifest import check_finite
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.array_files import write_safetensors as write_arrays
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.files import write_json
from imta_jax.training.state import named_arrays

MODEL = "model.safetensors"


def write_safetensors(
    classifier: MultiExitClassifier, manifest: Mapping[str, Any], folder: Path
) -> None:
    """Writes the variables and the manifest.

    Args:
      classifier: phase I or II.
      manifest: entries of the manifest about classes, exits, operating points and preprocessing.
      folder: existing folder.

    Raises:
      ValueError: weights that are not finite.
    """
    named = named_arrays(nnx.state(classifier, nnx.Any(nnx.Param, nnx.BatchStat)))
    arrays = {name: np.asarray(array) for name, array in named.items()}
    for name, array in arrays.items():
        check_finite(name, array, "the classifier")
    write_arrays(folder / MODEL, arrays, {"format": "flax"})
    manifest = {
        "format": export_folder.SAFETENSORS_FORMAT,
        "format_version": 1,
        "image_shape": list(classifier.image_shape),
        "versions": package_versions(),
        **manifest,
    }
    write_json(folder / export_folder.MANIFEST, manifest, allow_nan=False)
