"""Runs an ONNX export: `python run.py images/*.jpg --budget=0.5`. Needs onnxruntime, NumPy, Pillow.

Each image leaves at the first exit whose highest softmax probability reaches the threshold.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Network:
    """The stages of the folder `folder`, with the thresholds of a budget."""

    def __init__(self, folder: str | Path, budget: float = 0.5, threads: int = 0):
        folder, options = Path(folder), onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: all cores
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # dequantize at loading
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.stages = [
            onnxruntime.InferenceSession(folder / name, options) for name in self.manifest["files"]
        ]
        points = [p for p in self.manifest["operating_points"] if p["budget"] <= budget]
        if not points:
            raise SystemExit(f"budget={budget}: every operating point costs more")
        self.thresholds = max(points, key=lambda p: p["validation_top1"])["thresholds"]

    def read(self, path: str | Path) -> np.ndarray:
        """Decodes and preprocesses an image file to uint8 [H, W, C]."""
        image, recipe = Image.open(path, formats=("JPEG", "PNG")), self.manifest["preprocessing"]
        if recipe["exif_orientation"] == "apply":
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("L" if recipe["color"] == "gray" else "RGB")
        (height, width, channels), resize = self.manifest["image_shape"], recipe["resize"]
        if resize:
            scale = resize / min(image.size)
            size = [max(resize, int(side * scale)) for side in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
        if list(pixels.shape[:2]) == recipe["source_size"]:
            pixels = np.pad(pixels, [*recipe["padding"], (0, 0)])
        if pixels.shape != (height, width, channels):
            raise SystemExit(f"{path}: expected {recipe['source_size']} pixels (height, width)")
        return pixels

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, exits from 0 and confidences of uint8 images [N, H, W, C]."""
        labels, exits = np.zeros(len(images), int), np.zeros(len(images), int)
        confidence, rest, state = np.zeros(len(images)), np.arange(len(images)), [images]
        for i, stage in enumerate(self.stages):
            names = [given.name for given in stage.get_inputs()]
            outputs = stage.run(None, dict(zip(names, state, strict=True)))
            *state, logits = map(np.asarray, outputs)
            best = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
            labels[rest], exits[rest], confidence[rest] = logits.argmax(axis=1), i, best
            kept = best < np.float32(self.thresholds[i])
            rest, state = rest[kept], [array[kept] for array in state]
            if not len(rest):
                break
        return labels, exits, confidence


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--budget", type=float, default=0.5)
    arguments = parser.parse_args()
    network = Network(Path(__file__).parent, arguments.budget)
    predictions = network.predict(np.stack([network.read(path) for path in arguments.images]))
    for path, label, exit_, confidence in zip(arguments.images, *predictions, strict=True):
        print(f"{path}\t{network.manifest['class_names'][label]}\t{confidence:.4f}\t{exit_ + 1}")
