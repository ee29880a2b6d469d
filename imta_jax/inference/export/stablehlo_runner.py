"""Runs a StableHLO export without imta_jax: `python run.py images/*.jpg --budget=0.5`.

Needs JAX, NumPy and flatbuffers, and Pillow for image files. Each image leaves at the first exit
whose score, by default the highest softmax probability, reaches the threshold. Exports have a
copy of this file, which imports `image_reading` of the same folder; see `runner_files`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.inference.export.runner_command import main, run_stage, thresholds_for, transform_of
from imta_jax.inference.export.runner_manifest import check_class_names, read_manifest
from imta_jax.inference.image_files import read_image

Arrays = list[np.ndarray]


def load_stages(folder: Path, manifest: dict[str, Any]) -> list[Callable[[Arrays], Arrays]]:
    """Functions of the state: state of the last stage -> next state and logits.

    The first one also normalizes uint8 pixels.
    """
    # Opened here: np.load leaks the file handle if the file is not an archive.
    with (folder / "weights.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays, stages = dict(archive), []
    for i, entry in enumerate(manifest["stages"]):
        program = read_program(folder / f"stage_{i}.stablehlo")
        check_class_names(manifest, program.out_avals[-1].shape[-1])
        names, dtypes = entry["weights"], [aval.dtype for aval in program.in_avals]
        weights = [_weight(arrays, *pair) for pair in zip(names, dtypes, strict=False)]
        stages.append(for_any_batch_size(program, weights))
    first, preprocessing = stages[0], manifest["preprocessing"]
    return [lambda state: first([_normalize(state[0], preprocessing)]), *stages[1:]]


def read_program(path: Path) -> Any:
    """A program that JAX exported."""
    import jax.export

    return jax.export.deserialize(bytearray(path.read_bytes()))


def for_any_batch_size(program: Any, weights: Arrays) -> Callable[[Arrays], Arrays]:
    """A function of arrays [N, ...]. N is padded to a power of two, to compile a few sizes only."""
    import jax

    on_device, compiled = jax.device_put(weights), jax.jit(program.call)

    def run(arrays: Arrays) -> Arrays:
        count = len(arrays[0])
        rows = np.minimum(np.arange(1 << (count - 1).bit_length()), count - 1)
        results = jax.tree.leaves(compiled(on_device, tuple(array[rows] for array in arrays)))
        return [np.asarray(array)[:count] for array in results]

    return run


def _weight(arrays: dict[str, np.ndarray], name: str, dtype: np.dtype) -> np.ndarray:
    array = arrays[name]
    if f"{name}.scale" in arrays:  # int8
        return array.astype(np.float32) * arrays[f"{name}.scale"]
    return array.view(dtype) if array.dtype == np.uint16 else array  # bits of bfloat16


def _normalize(pixels: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    mean, std = (np.array(preprocessing[name]) for name in ("mean", "std"))
    return pixels * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)


def exit_rule(folder: Path, i: int) -> Callable[[np.ndarray, Arrays], tuple[np.ndarray, Arrays]]:
    """The rule of an exit: logits [N, K] and its memory -> scores [N] and the next memory."""
    path = folder / f"exit_rule_{i}.stablehlo"
    if not path.exists():
        return lambda logits, memory: (highest_probability(logits), memory)
    program = read_program(path)

    def score(logits: np.ndarray, memory: Arrays) -> tuple[np.ndarray, Arrays]:
        scores, following = program.call(logits, tuple(memory))
        return np.asarray(scores), [np.asarray(array) for array in following]

    return score


def highest_probability(logits: np.ndarray) -> np.ndarray:
    """The highest softmax probability [N] of logits [N, K]."""
    return 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


class Network:
    """The stages of the folder `folder`, with the thresholds of a budget."""

    def __init__(self, folder: str | Path, budget: float = 0.5):
        import jax.export  # noqa: F401  # a missing package is reported before damage

        folder = Path(folder)
        self.manifest = read_manifest(folder, newest=3, stages="stages")
        self.stages = load_stages(folder, self.manifest)
        self.rules = [exit_rule(folder, i) for i in range(len(self.stages))]
        self.transform = transform_of(self.manifest)
        self.thresholds = thresholds_for(self.manifest, budget)

    def read(self, path: str | Path) -> np.ndarray:
        """Decodes and preprocesses a file to uint8 [H, W, C]; see `image_files.read_image`."""
        return read_image(path, self.transform).pixels

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, exits from 0 and confidences of uint8 images [N, H, W, C]."""
        labels, exits = np.zeros(len(images), int), np.zeros(len(images), int)
        confidence, active = np.zeros(len(images)), np.arange(len(images))
        state, memory = [images], []
        for i, (stage, rule) in enumerate(zip(self.stages, self.rules, strict=True)):
            *state, logits = run_stage(f"stage_{i}.stablehlo", stage, state)
            scores, memory = run_stage(f"exit_rule_{i}.stablehlo", rule, logits, memory)
            labels[active], exits[active] = logits.argmax(axis=1), i
            confidence[active] = highest_probability(logits)
            continues = scores < np.float32(self.thresholds[i])
            active, state, memory = (
                active[continues],
                [a[continues] for a in state],
                [a[continues] for a in memory],
            )
            if not len(active):
                break
        return labels, exits, confidence


if __name__ == "__main__":
    sys.exit(main(Network, Path(__file__).parent, "Classifies images with a StableHLO export."))
