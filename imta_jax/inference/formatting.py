"""Answers for pictures as text: a table that grows, JSON lines, a summary; and what a folder is."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from imta_jax.inference.export.loader import ExportedClassifier


class Answer(NamedTuple):
    """What the network says of one picture.

    Attributes:
      path: of the file.
      size: its (height, width) in pixels.
      label: class, from 0.
      exit: that answered, from 0.
      confidence: highest softmax probability there.
      macs: multiply-adds until there.
      milliseconds: the time of its batch divided by the images in it, decoding not included.
    """

    path: Path
    size: tuple[int, int]
    label: int
    exit: int
    confidence: float
    macs: int
    milliseconds: float


class Table:
    """Prints aligned rows, the heading before the first.

    Args:
      exported: names the classes.
      paths: of all pictures that will come, for the width of their column.
    """

    def __init__(self, exported: ExportedClassifier, paths: Sequence[Path]):
        self._names = exported.class_names
        self._exits = exported.network.num_exits
        file, label = (max(map(len, map(str, column))) for column in (paths, self._names))
        self._row = (
            f"{{:<{max(file, 4)}}}  {{:<{max(label, 5)}}}  {{:>10}}  {{:>5}}  {{:>15}}  {{:>8}}"
        )
        self._heading: str | None = self._row.format(
            "file", "label", "confidence", "exit", "multiply-adds", "ms"
        )

    def add(self, answers: Sequence[Answer]) -> None:
        """Prints a row for each."""
        rows = [
            self._row.format(
                str(answer.path),
                self._names[answer.label],
                f"{answer.confidence:.3f}",
                f"{answer.exit + 1}/{self._exits}",
                f"{answer.macs:,}",
                f"{answer.milliseconds:.2f}",
            )
            for answer in answers
        ]
        if rows and self._heading is not None:
            rows, self._heading = [self._heading, *rows], None
        _write(rows)


class JsonLines:
    """Prints one JSON object per picture; arguments as of `Table`."""

    def __init__(self, exported: ExportedClassifier, paths: Sequence[Path]):
        self._names = exported.class_names
        self._exits = exported.network.num_exits

    def add(self, answers: Sequence[Answer]) -> None:
        """Prints an object for each; exits count from 1."""
        _write(
            json.dumps(
                {
                    "file": str(answer.path),
                    "label": self._names[answer.label],
                    "class": answer.label,
                    "confidence": round(answer.confidence, 6),
                    "exit": answer.exit + 1,
                    "exits": self._exits,
                    "macs": answer.macs,
                    "ms": round(answer.milliseconds, 4),
                    "height": answer.size[0],
                    "width": answer.size[1],
                }
            )
            for answer in answers
        )


def summary(
    exported: ExportedClassifier,
    answers: Sequence[Answer],
    seconds: float,
    chosen: str,
    batch_size: int,
) -> str:
    """What the pictures cost together.

    Args:
      exported: what classified them.
      answers: all.
      seconds: from the first file to the last answer, compilation included.
      chosen: thresholds, in words.
      batch_size: images at a time.
    """
    if not answers:
        return "no image was classified"
    full = int(exported.network.macs[-1])
    share = np.mean([answer.macs for answer in answers]) / full
    pace = 1e3 / np.mean([answer.milliseconds for answer in answers])
    timed = "each image's own" if batch_size == 1 else f"its batch's, of up to {batch_size}, shared"
    return (
        f"{len(answers)} images, on average {share:.1%} of the full {full:,} multiply-adds "
        f"({chosen})\n{pace:.1f} images/s without decoding and compiling, {seconds:.1f} s in all "
        f"with both; ms: {timed}"
    )


def description(exported: ExportedClassifier, folder: str) -> str:
    """What an exported folder holds: network, exits, operating points."""
    manifest, network = exported.manifest, exported.network
    names = exported.class_names
    some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    height, width, channels = network.image_shape
    shown = manifest["preprocessing"]["description"]
    lines = [
        f"{folder}: {network.num_exits} exits, {len(names)} classes ({some})",
        f"images {width} x {height}, {channels} channels. {shown}",
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
        left = " ".join(f"{100 * fraction:5.1f}" for fraction in point.validation_exit_fractions)
        lines.append(
            f"{point.budget:>6.3f}  {point.validation_top1:>16.2f}  {point.top1:>10.2f}  {left}"
        )
    return "\n".join(lines)


def _write(lines: Iterable[str]) -> None:
    """Lines to the standard output, above a progress bar if there is one."""
    for line in lines:
        tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
