"""Classifies image files with an exported network, from the command line.

Needs neither Flax nor TensorFlow, and no code of models or training.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from imta_jax.errors import InputError, UserError, message_of
from imta_jax.evaluation.operating_points import best_within_ms
from imta_jax.inference.adaptive import AdaptiveClassifier, AdaptivePredictions
from imta_jax.inference.arguments import few_batch_sizes
from imta_jax.inference.export.loader import ExportedClassifier, load_exported
from imta_jax.inference.formatting import (
    FilePrediction,
    JsonLinesPrinter,
    TablePrinter,
    description,
    summary,
)
from imta_jax.inference.image_files import DecodedImage, find_image_files, read_image
from imta_jax.inference.printable_text import file_name, on_one_line, printable
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.paths import path_argument
from imta_jax.runtime.preemption import FORCED_EXIT_CODE
from imta_jax.runtime.progress_bar import with_progress

_PROGRAM = "python -m imta_jax.inference"
_BATCH_SIZE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the prediction for each image file.

    Returns:
      0; 1 if an image was skipped; 2 if an argument is invalid; 130 after Ctrl-C.
    """
    arguments = _parser().parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        _print_message(f"error: {message_of(error)}")
        return 2
    except KeyboardInterrupt:
        _print_message("interrupted")
        return FORCED_EXIT_CODE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Classifies images with an exported network. Each image leaves at the first "
        "exit that is confident enough.",
        epilog="Without images, describes the exported folder.",
    )
    parser.add_argument(
        "folder",
        type=path_argument("folder"),
        help="written by python -m imta_jax.inference.export",
    )
    parser.add_argument("images", nargs="*", help="image files, or folders of them")
    parser.add_argument(
        "--budget",
        type=float,
        help="mean multiply-adds per image, as a fraction of the full network's, e.g. 0.5; uses "
        "the most accurate exported thresholds that do not exceed it (default: 1, the "
        "most accurate of all)",
    )
    parser.add_argument(
        "--budget-ms",
        type=float,
        help="mean milliseconds per image, instead of --budget; measures the stages once per "
        "device",
    )
    parser.add_argument(
        "--thresholds", help="one threshold per exit, instead of a budget, e.g. 0.9,0.8,0"
    )
    parser.add_argument(
        "--batch-size", type=int, default=_BATCH_SIZE, help="images per batch (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="measure the time of each stage, once per device, print it and plan batches by it",
    )
    parser.add_argument(
        "--skip-golden-check",
        action="store_true",
        help="do not compare the logits of the folder's synthetic images with the writer's",
    )
    parser.add_argument(
        "--trust-compiled",
        action="store_true",
        help="use compiled programs of the folder, which are machine code; only for folders from "
        "someone you trust",
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    paths = find_image_files(arguments.images)
    exported = load_exported(
        arguments.folder,
        check_golden=not arguments.skip_golden_check,
        trust_compiled=arguments.trust_compiled,
    )
    # Memory is allocated for full batches: a batch is at most as large as the number of files.
    arguments.batch_size = min(arguments.batch_size, max(len(paths), _BATCH_SIZE))
    adaptive, thresholds = _adaptive(exported, arguments)
    if arguments.profile:
        print(adaptive.warm_up().table(), file=sys.stderr if arguments.json else sys.stdout)
    if paths:
        return _classify(exported, adaptive, paths, thresholds, as_json=arguments.json)
    if not arguments.profile:
        print(printable(description(exported, str(arguments.folder)), sys.stdout.encoding))
    return 0


def _adaptive(
    exported: ExportedClassifier, arguments: argparse.Namespace
) -> tuple[AdaptiveClassifier, str]:
    """Makes the classifier, and a description of its thresholds."""
    channels = exported.network.image_shape[2]
    if channels not in (1, 3):
        raise InputError(
            f"{arguments.folder}: the network takes images of {channels} channels; expected 1 or 3 "
            "for image files; call it from Python (imta_jax.inference.load_exported)"
        )
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1; found {arguments.batch_size}")
    exclusive = (arguments.budget, arguments.budget_ms, arguments.thresholds)
    if sum(value is not None for value in exclusive) > 1:
        raise InputError("--budget, --budget-ms and --thresholds exclude each other; give one")
    options = few_batch_sizes(arguments.batch_size)
    if arguments.budget_ms is not None:
        return _adaptive_in_time(exported, arguments.budget_ms, options)
    if arguments.thresholds is None:
        # Not the 0.5 of `AdaptiveClassifier.from_export`: a command without options should give the
        # network's best labels.
        budget = 1.0 if arguments.budget is None else arguments.budget
        point = exported.point_for(budget)
        text = f"budget {budget:g}, thresholds exported for {point.budget:.3f}"
        return exported.adaptive(budget, **options), text
    try:
        thresholds = [float(part) for part in arguments.thresholds.split(",")]
    except ValueError as error:
        raise InputError(
            f"--thresholds: {error}; expected numbers separated by commas, e.g. 0.9,0.8,0"
        ) from error
    text = f"thresholds {arguments.thresholds}"
    return AdaptiveClassifier(exported.network, thresholds, **options), text


def _adaptive_in_time(
    exported: ExportedClassifier, budget_ms: float, options: dict[str, Any]
) -> tuple[AdaptiveClassifier, str]:
    """Like `_adaptive`, for a budget in milliseconds, which needs a measured profile."""
    adaptive = exported.adaptive(1.0, **options)
    exit_ms = adaptive.measure().exit_ms()
    point = best_within_ms(exported.points, exit_ms, budget_ms)
    text = f"budget {budget_ms:g} ms, thresholds exported for {point.budget:.3f}"
    fractions = point.validation_exit_fractions
    return adaptive.with_thresholds(point.thresholds, exit_fractions=fractions), text


def _classify(
    exported: ExportedClassifier,
    adaptive: AdaptiveClassifier,
    paths: list[Path],
    thresholds: str,
    *,
    as_json: bool,
) -> int:
    """Prints the predictions and a summary; returns the exit code of `main`."""
    size = adaptive.max_batch_size
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]
    printer = (JsonLinesPrinter if as_json else TablePrinter)(exported, paths)
    predictions, num_skipped, start = [], 0, time.perf_counter()
    work = with_progress(
        _prefetch(exported, batches),
        total=len(paths),
        description="classify",
        unit="image",
        size_of=len,
    )
    for batch in work:
        decoded = [(path, image) for path, image in batch if isinstance(image, DecodedImage)]
        for _, error in batch:
            if not isinstance(error, DecodedImage):
                num_skipped += 1
                _print_message(on_one_line(f"skipped: {error}"))
        new = []
        for prediction in _predict(adaptive, decoded, first=not predictions):
            if math.isfinite(prediction.confidence):
                new.append(prediction)
                continue
            num_skipped += 1
            name = on_one_line(file_name(prediction.path))
            _print_message(f"skipped: {name}: the logits are not finite; the network overflows")
        printer.add(new)
        predictions += new
    seconds = time.perf_counter() - start
    text = summary(exported, predictions, seconds, thresholds, size)
    stream = sys.stderr if as_json else sys.stdout
    print(printable(text, stream.encoding), file=stream)
    if num_skipped:
        _print_message(f"{num_skipped} of {len(paths)} images were skipped")
    return 1 if num_skipped else 0


def _prefetch(
    exported: ExportedClassifier, batches: Sequence[Sequence[Path]]
) -> Iterator[list[tuple[Path, DecodedImage | InputError]]]:
    """Decodes on all cores; the next batch is decoded while the current one is classified."""

    def read(path: Path) -> tuple[Path, DecodedImage | InputError]:
        try:
            return path, read_image(path, exported.transform)
        except InputError as error:
            return path, error

    with ThreadPoolExecutor(usable_cores()) as threads:
        following: list[Future] = [threads.submit(read, path) for path in batches[0]]
        for batch in [*batches[1:], ()]:
            current, following = following, [threads.submit(read, path) for path in batch]
            yield [future.result() for future in current]


def _predict(
    adaptive: AdaptiveClassifier, decoded: list[tuple[Path, DecodedImage]], *, first: bool
) -> list[FilePrediction]:
    """Classifies one batch."""
    if not decoded:
        return []
    images = np.stack([image.pixels for _, image in decoded])
    if first:  # untimed: allocates memory and compiles most programs
        adaptive.predict(images)
    predictions, milliseconds = _timed_predict(adaptive, images)
    columns = zip(decoded, *predictions, strict=True)
    return [
        FilePrediction(
            path, image.size, int(label), int(exit_), float(confidence), int(macs), milliseconds
        )
        for (path, image), label, exit_, confidence, macs in columns
    ]


def _timed_predict(
    adaptive: AdaptiveClassifier, images: np.ndarray
) -> tuple[AdaptivePredictions, float]:
    """Predictions and milliseconds per image; repeated if a program was compiled meanwhile."""
    while True:
        compiled, start = adaptive.programs.num_compiled, time.perf_counter()
        predictions = adaptive.predict(images)
        seconds = time.perf_counter() - start
        if adaptive.programs.num_compiled == compiled:
            return predictions, 1e3 * seconds / len(images)


def _print_message(text: str) -> None:
    line = printable(f"{_PROGRAM}: {text}", sys.stderr.encoding)
    tqdm.write(line, file=sys.stderr)  # above a progress bar, if there is one
