"""The content of a run's `data/` folder as one frozen record, for the report of the dataset."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int

SPLITS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class SplitSummary:
    """Numbers of one split.

    Attributes:
      examples: number of images.
      per_class: number of images of each class.
      skipped: files that were skipped because they do not decode.
    """

    examples: int
    per_class: Int[np.ndarray, " K"]
    skipped: int


@dataclass(frozen=True)
class Statistics:
    """Normalization: `mean` and `std` per channel, [C], of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class PipelineThroughput:
    """Measured throughput of training batches: `images` in `seconds`, `batch_size` per batch."""

    name: str
    batch_size: int
    images: int
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Hardware:
    """Hardware of the measurement: kind and number of devices, and the host's CPU cores."""

    device: str
    devices: int
    cores: int


@dataclass(frozen=True)
class Preview:
    """Images of a split: `images` uint8 [M, H, W, C], C = 1 or 3; `labels` integers [M]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Findings:
    """Findings of loading the dataset; empty for summaries of earlier versions.

    Attributes:
      left_out: number of images left out by reason, by split.
      left_out_files: the first of them with reasons, by split.
      rotated: number of images with an EXIF orientation, by split.
      exif_orientation: "ignore" or "apply".
      across_splits: (split, other split, number of images of the first that are also in the other).
      in_two_classes: number of images that are also in another class.
      duplicates: pairs of equal images, as text.
      similar_classes: groups of class names that look alike.
      misplaced: (folder, number of images that are not read, remedy).
      ignored: (folder, number of files in its class folders that are not read, by suffix).
    """

    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out_files: dict[str, list[str]] = field(default_factory=dict)
    rotated: dict[str, int] = field(default_factory=dict)
    exif_orientation: str = "ignore"
    across_splits: tuple[tuple[str, str, int], ...] = ()
    in_two_classes: int = 0
    duplicates: tuple[str, ...] = ()
    similar_classes: tuple[tuple[str, ...], ...] = ()
    misplaced: tuple[tuple[str, int, str], ...] = ()
    ignored: tuple[tuple[str, dict[str, int]], ...] = ()


@dataclass(frozen=True, repr=False)
class DataRecord:
    """The content of a run's folder `data/`.

    Attributes:
      folder: the folder.
      dataset: name of the dataset.
      source: where it was read from.
      class_names: names of the K classes, in the order of the labels.
      image_shape: (H, W, C) of the network's input.
      preprocessing: one sentence.
      splits: summaries of "train", "validation" and "test".
      statistics: normalization statistics.
      pipeline: throughput of the input pipeline.
      hardware: hardware on which the throughput was measured.
      previews: images of "train" (augmented) and "validation".
      findings: what was left out, and what is unusual.
    """

    folder: Path
    dataset: str
    source: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocessing: str
    splits: dict[str, SplitSummary]
    statistics: Statistics
    pipeline: PipelineThroughput
    hardware: Hardware
    previews: dict[str, Preview]
    findings: Findings = field(default_factory=Findings)

    def __repr__(self) -> str:
        return f"DataRecord({str(self.folder)!r}: {self.dataset}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """Number of classes, K, including those without images."""
        return len(self.class_names)

    @property
    def epoch_seconds(self) -> float | None:
        """Minimum time of an epoch at the pipeline's throughput; None if it is unknown."""
        throughput = self.pipeline.images_per_second
        return self.splits["train"].examples / throughput if throughput > 0 else None

    def classes_without(self, split: str) -> list[str]:
        """Names of the classes without images in a split, in the order of the labels."""
        return [self.class_names[k] for k in np.flatnonzero(self.splits[split].per_class == 0)]
