"""Golden inputs: synthetic images and their logits, by which loading checks an export.

The writer computes the logits. The loader computes them again from the images, through the
preprocessing and all programs of the folder, those for larger batches included. No image of a
dataset is stored.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Float32, UInt8

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform, resize_window
from imta_jax.errors import UNREADABLE_ARCHIVE, InputError
from imta_jax.inference.engine.programs import COMPILER_OPTIONS
from imta_jax.inference.engine.staged import StagedNetwork
from imta_jax.inference.export import folder as export_folder
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.files import write_atomically
from imta_jax.runtime.machine import machine_identity
from imta_jax.runtime.parallel_compilation import DEFAULT_CACHE_DIR, cache_every_program

_log = logging.getLogger(__name__)

NUM_IMAGES = 4
# Largest difference of a logit, as a fraction of the range of the exit's logits. Platforms round
# differently: CPUs by 1e-6, GPUs that compute float32 convolutions in TF32 by 1e-3.
TOLERANCES = {"float32": 0.01, "bfloat16": 0.05}
PASSED_DIR = DEFAULT_CACHE_DIR / "golden"
_GRID = 6  # random colors per side of an image


def golden_images(transform: EvaluationTransform) -> list[UInt8[np.ndarray, "h w C"]]:
    """Seeded smooth noise, as decoded from files: before padding or resizing."""
    if transform.resize is None:
        sizes = [transform.source_size] * NUM_IMAGES
    else:
        short, long = transform.resize, transform.resize * 5 // 4
        sizes = [(short, long), (long, short), (short, short), (long, long)]
    rng = np.random.default_rng(0)
    shape = (_GRID, _GRID, transform.image_shape[2])
    window = np.array([0, 0, _GRID, _GRID], np.float32)
    return [resize_window(rng.integers(0, 256, shape, np.uint8), window, size) for size in sizes]


def write_golden(path: Path, network: StagedNetwork, transform: EvaluationTransform) -> None:
    """Writes golden images and the logits that a network computes for them.

    Args:
      path: the `.npz`.
      network: takes uint8 pixels.
      transform: preprocessing of its images.

    Raises:
      ValueError: a logit is not finite.
    """
    images = golden_images(transform)
    logits = _logits(network, transform, images)
    if not np.isfinite(logits).all():
        exits = ", ".join(str(e + 1) for e in np.flatnonzero(~np.isfinite(logits).all((1, 2))))
        raise InputError(
            f"the logits of exit {exits} are not finite for a synthetic image; the network diverged"
        )
    arrays = {"logits": logits, **{f"image_{i}": image for i, image in enumerate(images)}}
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def check_golden_once(
    path: Path, network: StagedNetwork, transform: EvaluationTransform, dtype: str
) -> None:
    """Calls `check_golden` unless the same folder passed it on this machine before.

    A file named by a hash records a passed check. The hash covers the checksums of the folder, the
    versions of this package and of JAX, the device, the CPU, and JAX's and XLA's settings.
    """
    passed = PASSED_DIR.expanduser() / _digest(path.parent)
    if passed.exists():
        return
    check_golden(path, network, transform, dtype)
    try:
        write_atomically(passed, "")
    except OSError as error:
        _log.info("the check is repeated at the next loading: %s: %s", passed, error)


def _digest(folder: Path) -> str:
    settings = sorted(item for item in jax.config.values.items() if "_cache_" not in item[0])
    parts = (machine_identity(), package_versions(), os.environ.get("XLA_FLAGS"), settings)
    checksums = (folder / export_folder.CHECKSUMS).read_bytes()
    return hashlib.sha256(checksums + repr(parts).encode()).hexdigest()


def check_golden(
    path: Path, network: StagedNetwork, transform: EvaluationTransform, dtype: str
) -> None:
    """Checks that a loaded network computes the logits of the writer.

    Args:
      path: written by `write_golden`.
      network: loaded from the same folder.
      transform: loaded from the same folder.
      dtype: in which the network computes; it sets the tolerance.

    Raises:
      ValueError: logits differ by more than the tolerance. The message names the exits.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            expected = file["logits"]
            images = [file[f"image_{i}"] for i in range(expected.shape[1])]
    except (IndexError, KeyError, *UNREADABLE_ARCHIVE) as error:
        raise InputError(
            f"{path}: golden images cannot be read ({type(error).__name__}: {error}); export the "
            "network again"
        ) from error
    try:
        logits_by_form = _logits_of_forms(network, transform, images)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for form, logits in logits_by_form:
        if logits.shape != expected.shape:
            raise InputError(f"{path}: logits have shape {expected.shape}; expected {logits.shape}")
        _check_equal(path, form, expected, logits, TOLERANCES[dtype])


def _check_equal(
    path: Path,
    form: str,
    expected: Float32[np.ndarray, "E N K"],
    logits: Float32[np.ndarray, "E N K"],
    tolerance: float,
) -> None:
    range_ = expected.max(axis=(1, 2)) - expected.min(axis=(1, 2))
    difference = np.abs(logits - expected).max(axis=(1, 2)) / np.maximum(range_, 1e-6)
    wrong = np.flatnonzero(~(difference <= tolerance))  # also NaN
    if len(wrong):
        named = ", ".join(f"exit {e + 1} by {difference[e]:.1%}" for e in wrong)
        raise InputError(
            f"{path}: the logits of the golden images{form} differ from the writer's: {named} of "
            f"their range; expected at most {tolerance:.0%}. The preprocessing, the weights or "
            "the compiler of this machine is wrong; export the network again, or skip the check "
            "with check_golden=False (--skip-golden-check)"
        )


def _logits_of_forms(
    network: StagedNetwork, transform: EvaluationTransform, images: Sequence[np.ndarray]
) -> list[tuple[str, Float32[np.ndarray, "E N K"]]]:
    """Logits of every form of the network, with a description of the form."""
    forms = [("", network)]
    if last := network.images_last:
        images_last = dataclasses.replace(
            network, stages=last.stages, weights=last.weights, images_last=None
        )
        forms.append((", with the programs for larger batches,", images_last))
    with ThreadPoolExecutor() as pool:  # compiles the forms at the same time
        all_logits = pool.map(lambda form: _logits(form[1], transform, images), forms)
        return [(form, logits) for (form, _), logits in zip(forms, all_logits, strict=True)]


def _logits(
    network: StagedNetwork, transform: EvaluationTransform, images: Sequence[np.ndarray]
) -> Float32[np.ndarray, "E N K"]:
    pixels = np.stack([transform.apply(image) for image in images])
    compute = jax.jit(network.logits, compiler_options=COMPILER_OPTIONS)
    with cache_every_program():
        logits: Float[jax.Array, "E N K"] = compute(network.weights, pixels)
    return np.asarray(logits, np.float32)
