"""Reading a run's `data/` folder: what the page about the data shows, as one frozen record.

`launch.py --mode=data` writes `summary.json` (the facts) and `preview.npz` (some images of the
training and the validation split, as the network gets them but before normalizing). Both are
checked here, once, so that drawing can rely on them.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = {"train": "training", "validation": "validation", "test": "test"}
PREVIEWED = ("train", "validation")
# What a truncated, altered or foreign file makes its reader raise.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class SplitFacts:
    """One split in numbers.

    Attributes:
      examples: its images.
      per_class: int [K], images of each class.
      skipped: files that were left out.
    """

    examples: int
    per_class: np.ndarray
    skipped: int


@dataclass(frozen=True)
class Statistics:
    """What images are normalized by: `mean` and `std` per channel, [C], of pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class PipelineFacts:
    """How fast training batches were made: `images` in `seconds`, in batches of `batch_size`."""

    name: str
    batch_size: int
    images: int
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Machine:
    """What it was measured on: the kind of device, how many, and the host's CPU cores."""

    device: str
    devices: int
    cores: int


@dataclass(frozen=True)
class Preview:
    """Some images of a split: `images` uint8 [M, H, W, C], C = 1 or 3; `labels` integers [M]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, repr=False)
class DataRecord:
    """The data of a run, as its folder tells them.

    Attributes:
      folder: the run's folder `data/`.
      dataset: the dataset's name.
      source: where it was read from.
      class_names: [K], in the order of the labels.
      image_shape: (H, W, C) of what the network gets.
      preprocessing: one sentence.
      splits: by name: "train", "validation" and "test".
      statistics: what images are normalized by.
      pipeline: how fast training batches are made.
      machine: what that was measured on.
      previews: by split: "train" (augmented) and "validation".
    """

    folder: Path
    dataset: str
    source: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocessing: str
    splits: dict[str, SplitFacts]
    statistics: Statistics
    pipeline: PipelineFacts
    machine: Machine
    previews: dict[str, Preview]

    def __repr__(self) -> str:
        return f"DataRecord({str(self.folder)!r}: {self.dataset}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """Number of classes, K, those without an image included."""
        return len(self.class_names)

    @property
    def epoch_seconds(self) -> float | None:
        """The least time of an epoch: what making its batches takes; None if no speed is known."""
        speed = self.pipeline.images_per_second
        return self.splits["train"].examples / speed if speed > 0 else None

    def classes_without(self, split: str) -> list[str]:
        """Names of the classes of which a split has no image, in the order of the labels."""
        return [self.class_names[k] for k in np.flatnonzero(self.splits[split].per_class == 0)]


def load_data_record(folder: str | Path) -> DataRecord:
    """Reads the folder `data/` of a run.

    Args:
      folder: `DIR/data`, where DIR is the folder given to `launch.py --workdir`.

    Raises:
      FileNotFoundError: `summary.json` or `preview.npz` is not there.
      ValueError: one of them is damaged or lacks a part. Either message names the file and the
        command that writes it.
    """
    folder = Path(folder)
    facts = _read(folder, "summary.json", _summary)
    classes = len(facts["class_names"])
    previews = _read(folder, "preview.npz", lambda path: _previews(path, classes))
    return DataRecord(folder=folder, previews=previews, **facts)


def _read(folder: Path, name: str, parse: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `parse` makes of a file; its errors say which file it is and how to write it anew."""
    path = folder / name
    remedy = (
        f"write it with `python launch.py --config=configs/NAME.py --workdir={folder.parent}"
        " --mode=data`"
    )
    if not path.exists():
        raise FileNotFoundError(f"no data to look at: {path} is not there; {remedy}")
    try:
        return parse(path)
    except _DAMAGED as error:
        found = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged ({found}); {remedy}") from error


def _summary(path: Path) -> dict[str, Any]:
    """The fields of `DataRecord` that `summary.json` holds."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    names = tuple(str(name) for name in summary["class_names"])
    _expect(len(names) > 0, "class_names is empty")
    height, width, channels = map(int, summary["image_shape"])
    return {
        "dataset": str(summary["dataset"]),
        "source": str(summary["source"]),
        "class_names": names,
        "image_shape": (height, width, channels),
        "preprocessing": str(summary["preprocessing"]),
        "splits": {split: _split(split, summary["splits"][split], len(names)) for split in SPLITS},
        "statistics": _statistics(summary["statistics"], channels),
        "pipeline": _pipeline(summary["pipeline"]),
        "machine": _machine(summary["environment"]),
    }


def _split(split: str, facts: dict[str, Any], classes: int) -> SplitFacts:
    per_class = np.array([int(count) for count in facts["per_class"]], dtype=np.int64)
    _expect(
        len(per_class) == classes,
        f"splits.{split}.per_class has {len(per_class)} counts for {classes} classes",
    )
    _expect(bool((per_class >= 0).all()), f"splits.{split}.per_class has a count below 0")
    return SplitFacts(int(facts["examples"]), per_class, int(facts["skipped"]))


def _statistics(facts: dict[str, Any], channels: int) -> Statistics:
    mean, std = (tuple(float(value) for value in facts[name]) for name in ("mean", "std"))
    _expect(
        len(mean) == len(std) == channels,
        f"statistics has {len(mean)} mean and {len(std)} std for {channels} channels",
    )
    return Statistics(mean, std, str(facts["source"]))


def _pipeline(facts: dict[str, Any]) -> PipelineFacts:
    seconds, speed = float(facts["seconds"]), float(facts["images_per_second"])
    _expect(math.isfinite(seconds) and math.isfinite(speed), "pipeline has an endless time")
    return PipelineFacts(
        str(facts["name"]), int(facts["batch_size"]), int(facts["images"]), seconds, speed
    )


def _machine(facts: dict[str, Any]) -> Machine:
    return Machine(str(facts["device"]), int(facts["devices"]), int(facts["cores"]))


def _previews(path: Path, classes: int) -> dict[str, Preview]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {split: _preview(archive, split, classes) for split in PREVIEWED}


def _preview(archive: Any, split: str, classes: int) -> Preview:
    names = [f"{split}_{part}" for part in ("images", "labels")]
    missing = [name for name in names if name not in archive.files]
    _expect(not missing, f"no {', '.join(missing)}")
    images, labels = (archive[name] for name in names)
    _expect(
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3),
        f"{split}_images is {images.dtype} {list(images.shape)}, expected uint8 [M, H, W, 1 or 3]",
    )
    _expect(images.size > 0, f"{split}_images is empty")
    _expect(
        labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer),
        f"{split}_labels is {labels.dtype} {list(labels.shape)} for {len(images)} images",
    )
    _expect(
        bool(((labels >= 0) & (labels < classes)).all()),
        f"{split}_labels goes from {labels.min()} to {labels.max()} for {classes} classes",
    )
    return Preview(images, labels)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
