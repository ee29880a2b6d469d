"""The ONNX format of an export: one model per stage, and a runner that needs only ONNX Runtime.

    manifest.json    exits, operating points, preprocessing, versions
    stage_0.onnx ... one model per stage: (images or state) -> (next state, logits)
    run.py           classifies image files; `onnx_runner`
    image_reading/   reads the files for `run.py`; `runner_files`
    SHA256SUMS       checksums of the other files

The first stage takes uint8 pixels. The state between stages is opaque.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export

from imta_jax.errors import InputError
from imta_jax.inference.engine.staged import StagedNetwork
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export.runner_files import write_runner
from imta_jax.interop.onnx.convert import convert
from imta_jax.interop.onnx.graph import OPSET, import_onnx
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.files import write_json


def write_onnx(
    network: StagedNetwork, manifest: Mapping[str, Any], folder: Path, *, int8: bool
) -> None:
    """Writes the models, the manifest and the runner.

    Args:
      network: takes uint8 images.
      manifest: entries of the manifest about classes, exits, operating points and preprocessing.
      folder: existing folder.
      int8: whether weights are stored as int8 where that is exact (see `quantization`).

    Raises:
      InputError: an operation that cannot be expressed, or an exit rule other than the confidence.
      MissingPackageError: onnx is not installed.
    """
    if network.rule is not None:
        raise InputError(
            f"exit_rule is {network.rule.name!r}; the ONNX runner has the confidence only; export "
            "the network as StableHLO"
        )
    (batch_size,) = jax.export.symbolic_shape("b")
    state = [jax.ShapeDtypeStruct((batch_size, *network.image_shape), network.image_dtype)]
    names, files = ["images"], []
    for i, (stage, weights) in enumerate(zip(network.stages, network.weights, strict=True)):
        model, state = convert(stage, weights, state, names, int8=int8)
        names = [f"state_{k}" for k in range(len(state))]
        files.append(f"stage_{i}.onnx")
        (folder / files[-1]).write_bytes(model.SerializeToString())
    manifest = {
        "format": export_folder.ONNX_FORMAT,
        "format_version": 1,
        "opset": OPSET,
        "weights": "int8" if int8 else "float32",
        "image_shape": list(network.image_shape),
        "versions": package_versions() | {"onnx": import_onnx().__version__},
        "files": files,
        **manifest,
    }
    write_json(folder / export_folder.MANIFEST, manifest, allow_nan=False)
    write_runner("onnx_runner.py", folder)
