"""Classifies image files with an exported network, from the command line.

Needs JAX, NumPy and Pillow; neither Flax nor TensorFlow, and nothing of models or training.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imta_jax.inference.adaptive import AdaptiveClassifier, AdaptivePredictions
from imta_jax.inference.engine.operating_points import best_within_ms
from imta_jax.inference.export.loader import ExportedClassifier, load_exported, platform_here
from imta_jax.inference.formatting import Answer, JsonLines, Table, description, summary
from imta_jax.inference.image_files import Picture, find_pictures, read_picture
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.progress_bar import with_progress

_PROGRAM = "python -m imta_jax.inference"
_BATCH_SIZE = 32
# Images from which a batch is computed in two halves at a time on a processor.
_TWO_LANES = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what the network says of each picture.

    Returns:
      0; 1 if a picture did not decode; 2 if what was asked for cannot be done.
    """
    given = _parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _run(given)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Classifies pictures with an exported network; each leaves it at the first "
        "exit that is confident enough.",
        epilog="Without pictures it says what the folder holds.",
    )
    parser.add_argument("folder", help="written by python -m imta_jax.inference.export.run_export")
    parser.add_argument("pictures", nargs="*", help="image files, or folders of them")
    parser.add_argument(
        "--budget",
        type=float,
        help="mean multiply-adds per image, as a share of the whole network's, e.g. 0.5; the best "
        "exported thresholds that cost no more are used (default: 1)",
    )
    parser.add_argument(
        "--budget-ms",
        type=float,
        help="mean milliseconds per image instead, by stages measured once per device",
    )
    parser.add_argument("--thresholds", help="one for each exit instead, e.g. 0.9,0.8,0")
    parser.add_argument(
        "--batch-size", type=int, default=_BATCH_SIZE, help="images at a time (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="measure, once per device, what each stage costs; print it and plan batches by it",
    )
    return parser


def _run(given: argparse.Namespace) -> int:
    exported = load_exported(given.folder)
    paths = find_pictures(given.pictures)
    # Memory is taken for a whole batch: no larger than what there is to do, or than usual.
    given.batch_size = min(given.batch_size, max(len(paths), _BATCH_SIZE))
    adaptive, chosen = _adaptive(exported, given)
    if given.profile:
        print(adaptive.warm_up().table(), file=sys.stderr if given.json else sys.stdout)
    if paths:
        return _classify(exported, adaptive, paths, chosen, as_json=given.json)
    if not given.profile:
        print(description(exported, given.folder))
    return 0


def _adaptive(
    exported: ExportedClassifier, given: argparse.Namespace
) -> tuple[AdaptiveClassifier, str]:
    """The classifier that was asked for, and in words which."""
    if exported.network.image_shape[2] not in (1, 3):
        raise ValueError(
            f"{given.folder}: reads images of {exported.network.image_shape[2]} channels, and "
            "pictures have 1 or 3; call it from Python (imta_jax.inference.load_exported)"
        )
    if given.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1; found {given.batch_size}")
    if sum(asked is not None for asked in (given.budget, given.budget_ms, given.thresholds)) > 1:
        raise ValueError("--budget, --budget-ms and --thresholds exclude each other; give one")
    options = _options(given.batch_size)
    if given.budget_ms is not None:
        return _adaptive_in_time(exported, given.budget_ms, options)
    if given.thresholds is None:
        budget = 1.0 if given.budget is None else given.budget
        point = exported.point_for(budget)
        chosen = f"budget {budget:g}, thresholds exported for {point.budget:.3f}"
        return exported.adaptive(budget, **options), chosen
    try:
        thresholds = [float(part) for part in given.thresholds.split(",")]
    except ValueError as error:
        raise ValueError(f"--thresholds: {error}; expected numbers with commas") from error
    chosen = f"thresholds {given.thresholds}"
    return AdaptiveClassifier(exported.network, thresholds, **options), chosen


def _adaptive_in_time(
    exported: ExportedClassifier, budget_ms: float, options: dict[str, object]
) -> tuple[AdaptiveClassifier, str]:
    """The classifier for a budget in milliseconds, which asks for a measured profile."""
    adaptive = exported.adaptive(1.0, **options)
    exit_ms = adaptive.measure().exit_ms()
    point = best_within_ms(exported.points, exit_ms, budget_ms)
    chosen = f"budget {budget_ms:g} ms, thresholds exported for {point.budget:.3f}"
    return (
        adaptive.with_thresholds(point.thresholds, exit_fractions=point.validation_exit_fractions),
        chosen,
    )


def _options(batch_size: int) -> dict[str, object]:
    """Few programs, always the same for a batch size: they are compiled once and kept."""
    lanes = 2 if platform_here() == "cpu" and batch_size >= _TWO_LANES else 1
    capacity = -(-batch_size // lanes)
    sizes = {min(4**power, capacity) for power in range(capacity.bit_length())}
    return {"max_batch_size": batch_size, "lanes": lanes, "batch_sizes": sorted(sizes)}


def _classify(
    exported: ExportedClassifier,
    adaptive: AdaptiveClassifier,
    paths: list[Path],
    chosen: str,
    *,
    as_json: bool,
) -> int:
    """Prints a line for each picture, and what they cost together; see `main` for the result."""
    size = adaptive.max_batch_size
    chunks = [paths[i : i + size] for i in range(0, len(paths), size)]
    printer = (JsonLines if as_json else Table)(exported, paths)
    answers, undecoded, start = [], 0, time.perf_counter()
    work = with_progress(
        _read_ahead(exported, chunks),
        total=len(paths),
        description="classify",
        unit="image",
        size_of=len,
    )
    for chunk in work:
        read = [(path, picture) for path, picture in chunk if isinstance(picture, Picture)]
        for _, error in chunk:
            if not isinstance(error, Picture):
                undecoded += 1
                _say(f"skipped: {error}")
        found = _answers(adaptive, read, first=not answers)
        printer.add(found)
        answers += found
    seconds = time.perf_counter() - start
    _note_sizes(exported, answers)
    text = summary(exported, answers, seconds, chosen, size)
    print(text, file=sys.stderr if as_json else sys.stdout)
    if undecoded:
        _say(f"{undecoded} of {len(paths)} pictures did not decode and were skipped")
    return 1 if undecoded else 0


def _read_ahead(
    exported: ExportedClassifier, chunks: Sequence[Sequence[Path]]
) -> Iterator[list[tuple[Path, Picture | ValueError]]]:
    """Decodes chunks on all cores, the next while one is classified: (path, picture or error)."""

    def read(path: Path) -> tuple[Path, Picture | ValueError]:
        try:
            return path, read_picture(path, exported.network.image_shape, exported.resize)
        except ValueError as error:
            return path, error

    with ThreadPoolExecutor(usable_cores()) as threads:
        ahead: list[Future] = [threads.submit(read, path) for path in chunks[0]]
        for following in [*chunks[1:], ()]:
            current, ahead = ahead, [threads.submit(read, path) for path in following]
            yield [future.result() for future in current]


def _answers(
    adaptive: AdaptiveClassifier, read: list[tuple[Path, Picture]], *, first: bool
) -> list[Answer]:
    """What the network says of one batch, with the time per image: the batch's, shared equally."""
    if not read:
        return []
    images = np.stack([picture.pixels for _, picture in read])
    if first:  # memory is asked for, and most programs are compiled: no part of an image's time
        adaptive.predict(images)
    found, milliseconds = _timed(adaptive, images)
    columns = zip(read, *found, strict=True)
    return [
        Answer(path, picture.size, int(label), int(exit_), float(sure), int(macs), milliseconds)
        for (path, picture), label, exit_, sure, macs in columns
    ]


def _timed(adaptive: AdaptiveClassifier, images: np.ndarray) -> tuple[AdaptivePredictions, float]:
    """Answers, and milliseconds per image; done again if a program was compiled meanwhile."""
    while True:
        compiled, start = adaptive.programs.num_compiled, time.perf_counter()
        found = adaptive.predict(images)
        seconds = time.perf_counter() - start
        if adaptive.programs.num_compiled == compiled:
            return found, 1e3 * seconds / len(images)


def _note_sizes(exported: ExportedClassifier, answers: Sequence[Answer]) -> None:
    """Says aloud that small images were of another size; photographs are of any."""
    wanted = exported.network.image_shape[:2]
    other = [answer for answer in answers if answer.size != wanted]
    if exported.resize is None and other:
        height, width = other[0].size
        _say(
            f"note: {len(other)} of {len(answers)} pictures were not of {wanted[1]} x {wanted[0]} "
            f"pixels and were resized and cropped (the first: {other[0].path}, {width} x {height})"
        )


def _say(text: str) -> None:
    tqdm.write(f"{_PROGRAM}: {text}", file=sys.stderr)  # above the progress bar, if there is one
