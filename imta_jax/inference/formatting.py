"""Text output of the command: predictions as a table or JSON lines, and summaries."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imta_jax.inference.export.loader import ExportedClassifier
from imta_jax.inference.printable_text import file_name, on_one_line, printable


class FilePrediction(NamedTuple):
    """The prediction for one image file.

    Attributes:
      path: path of the file.
      size: (height, width) of the image in the file, in pixels.
      label: predicted class, from 0.
      exit: exit that predicted it, from 0.
      confidence: highest softmax probability at that exit.
      macs: multiply-adds up to that exit.
      milliseconds: time of the image's batch divided by its images, without decoding.
    """

    path: Path
    size: tuple[int, int]
    label: int
    exit: int
    confidence: float
    macs: int
    milliseconds: float


def _table_name(path: Path) -> str:
    return on_one_line(file_name(path))


class TablePrinter:
    """Prints predictions as aligned rows below a heading.

    Args:
      exported: provides class names and number of exits.
      paths: all image files, for the width of their column.
    """

    def __init__(self, exported: ExportedClassifier, paths: Sequence[Path]):
        self._names = [on_one_line(name) for name in exported.class_names]
        self._exits = exported.network.num_exits
        file, label = (max(map(len, column)) for column in (map(_table_name, paths), self._names))
        self._row = (
            f"{{:<{max(file, 4)}}}  {{:<{max(label, 5)}}}  {{:>10}}  {{:>5}}  {{:>15}}  {{:>8}}"
        )
        self._heading: str | None = self._row.format(
            "file", "label", "confidence", "exit", "multiply-adds", "ms"
        )

    def add(self, predictions: Sequence[FilePrediction]) -> None:
        """Prints one row per prediction."""
        rows = [
            self._row.format(
                _table_name(prediction.path),
                self._names[prediction.label],
                f"{prediction.confidence:.3f}",
                f"{prediction.exit + 1}/{self._exits}",
                f"{prediction.macs:,}",
                f"{prediction.milliseconds:.2f}",
            )
            for prediction in predictions
        ]
        if rows and self._heading is not None:
            rows, self._heading = [self._heading, *rows], None
        _write(rows)


class JsonLinesPrinter:
    """Prints one JSON object per image. Same arguments as `TablePrinter`."""

    def __init__(self, exported: ExportedClassifier, paths: Sequence[Path]):
        self._names = exported.class_names
        self._exits = exported.network.num_exits

    def add(self, predictions: Sequence[FilePrediction]) -> None:
        """Prints one object per prediction. Exits count from 1."""
        _write(
            json.dumps(
                {
                    "file": file_name(prediction.path),
                    "label": self._names[prediction.label],
                    "class": prediction.label,
                    "confidence": round(prediction.confidence, 6),
                    "exit": prediction.exit + 1,
                    "exits": self._exits,
                    "macs": prediction.macs,
                    "ms": round(prediction.milliseconds, 4),
                    "height": prediction.size[0],
                    "width": prediction.size[1],
                },
                allow_nan=False,
            )
            for prediction in predictions
        )


def summary(
    exported: ExportedClassifier,
    predictions: Sequence[FilePrediction],
    seconds: float,
    thresholds: str,
    batch_size: int,
) -> str:
    """Formats mean cost and throughput.

    Args:
      exported: the network.
      predictions: predictions of all images.
      seconds: time from the first file to the last prediction, with decoding and compilation.
      thresholds: a description of the thresholds.
      batch_size: images per batch.
    """
    if not predictions:
        return "no image was classified"
    full = int(exported.network.macs[-1])
    fraction = np.mean([prediction.macs for prediction in predictions]) / full
    throughput = 1e3 / np.mean([prediction.milliseconds for prediction in predictions])
    timed = (
        "per image"
        if batch_size == 1
        else f"time of a batch of up to {batch_size} divided by its images"
    )
    return (
        f"{len(predictions)} images, on average {fraction:.1%} of the full {full:,} multiply-adds "
        f"({thresholds})\n{throughput:.1f} images/s without decoding and compilation, "
        f"{seconds:.1f} s in total with both; ms: {timed}"
    )


def description(exported: ExportedClassifier, folder: str) -> str:
    """Describes an exported folder: network, exits, operating points."""
    manifest, network = exported.manifest, exported.network
    names = [on_one_line(name) for name in exported.class_names]
    first_names = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    height, width, channels = network.image_shape
    lines = [
        f"{folder}: {network.num_exits} exits, {len(names)} classes ({first_names})",
        f"images {width} x {height}, {channels} channels. {exported.transform.describe()}",
        f"computes in {manifest['dtype']}, for {', '.join(manifest['platforms'])}; "
        f"accuracies and thresholds from {manifest['evaluated_dtype']}",
        "",
        f"{'exit':>4}  {'multiply-adds':>15}  {'parameters':>12}  {'test top-1':>10}",
    ]
    for row in manifest["exits"]:
        accuracy = f"{row['top1']:.2f}" if "top1" in row else "-"
        lines.append(f"{row['exit']:>4}  {row['macs']:>15,}  {row['params']:>12,}  {accuracy:>10}")
    lines += ["", f"{'budget':>6}  {'validation top-1':>16}  {'test top-1':>10}  left at exits, %"]
    for point in exported.points:
        fractions = point.validation_exit_fractions or ()
        left = " ".join(f"{100 * fraction:5.1f}" for fraction in fractions)
        lines.append(
            f"{point.budget:>6.3f}  {point.validation_top1:>16.2f}  {point.top1:>10.2f}  {left}"
        )
    return "\n".join(lines)


def _write(lines: Iterable[str]) -> None:
    """Prints lines to standard output, above a progress bar if there is one."""
    for line in lines:
        tqdm.write(printable(line, sys.stdout.encoding), file=sys.stdout)
    sys.stdout.flush()
