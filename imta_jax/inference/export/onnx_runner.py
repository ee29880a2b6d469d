"""Runs an ONNX export: `python run.py images/*.jpg --budget=0.5`. Needs onnxruntime, NumPy, Pillow.

Each image leaves at the first exit whose highest softmax probability reaches the threshold. Exports
have a copy of this file, which imports `image_reading` of the same folder; see `runner_files`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.inference.export.runner_command import main, run_stage, thresholds_for, transform_of
from imta_jax.inference.export.runner_manifest import check_class_names, read_manifest
from imta_jax.inference.image_files import read_image


def run_session(session: Any, state: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a stage for the outputs of the stage before it."""
    names = [tensor.name for tensor in session.get_inputs()]
    return list(map(np.asarray, session.run(None, dict(zip(names, state, strict=True)))))


class Network:
    """The stages of the folder `folder`, with the thresholds of a budget."""

    def __init__(self, folder: str | Path, budget: float = 0.5, threads: int = 0):
        import onnxruntime

        folder, options = Path(folder), onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: all cores
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # dequantize at loading
        self.manifest = read_manifest(folder, newest=1, stages="files")
        self.stages = [
            onnxruntime.InferenceSession(folder / name, options) for name in self.manifest["files"]
        ]
        check_class_names(self.manifest, self.stages[-1].get_outputs()[-1].shape[-1])
        self.transform = transform_of(self.manifest)
        self.thresholds = thresholds_for(self.manifest, budget)

    def read(self, path: str | Path) -> np.ndarray:
        """Decodes and preprocesses a file to uint8 [H, W, C]; see `image_files.read_image`."""
        return read_image(path, self.transform).pixels

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, exits from 0 and confidences of uint8 images [N, H, W, C]."""
        labels, exits = np.zeros(len(images), int), np.zeros(len(images), int)
        confidence, active, state = np.zeros(len(images)), np.arange(len(images)), [images]
        for i, stage in enumerate(self.stages):
            *state, logits = run_stage(self.manifest["files"][i], run_session, stage, state)
            scores = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
            labels[active], exits[active], confidence[active] = logits.argmax(axis=1), i, scores
            continues = scores < np.float32(self.thresholds[i])
            active, state = active[continues], [array[continues] for array in state]
            if not len(active):
                break
        return labels, exits, confidence


if __name__ == "__main__":
    sys.exit(main(Network, Path(__file__).parent, "Classifies images with an ONNX export."))
