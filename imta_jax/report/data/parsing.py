"""Reads and checks a run's `data/` folder.

`launch.py --mode=data` writes `summary.json` and `preview.npz`. The preview has some images of the
training and validation splits, as the network gets them but before normalization. Both files are
checked here once.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imta_jax.errors import InputError, MissingFileError
from imta_jax.report.data.data_record import (
    SPLITS,
    DataRecord,
    Findings,
    Hardware,
    PipelineThroughput,
    Preview,
    SplitSummary,
    Statistics,
)
from imta_jax.report.fonts import escape_control_characters

PREVIEWED = ("train", "validation")


# Exceptions that reading a truncated or altered file may raise.
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


def load_data_record(folder: str | Path) -> DataRecord:
    """Reads the folder `data/` of a run.

    Args:
      folder: `DIR/data`, where DIR is the folder given to `launch.py --workdir`.

    Raises:
      FileNotFoundError: `summary.json` or `preview.npz` does not exist.
      ValueError: one of them is damaged or incomplete. Both messages name the file and the command
        that writes it.
    """
    folder = Path(folder)
    summary = _read(folder, "summary.json", _summary)
    classes = len(summary["class_names"])
    previews = _read(folder, "preview.npz", lambda path: _previews(path, classes))
    return DataRecord(folder=folder, previews=previews, **summary)


def _read(folder: Path, name: str, parse: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Parses a file; errors name the file and the command that writes it again."""
    path = folder / name
    remedy = (
        f"write it with `python launch.py --config=configs/NAME.py --workdir={folder.parent}"
        " --mode=data`"
    )
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; {remedy}")
    try:
        return parse(path)
    except _DAMAGED as error:
        problem = f"missing {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is damaged ({problem}); {remedy}") from error


def _summary(path: Path) -> dict[str, Any]:
    """The fields of `DataRecord` that `summary.json` holds."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    names = tuple(escape_control_characters(str(name)) for name in summary["class_names"])
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
        "hardware": _hardware(summary["environment"]),
        "findings": _findings(summary),
    }


def _findings(summary: dict[str, Any]) -> Findings:
    entry = summary.get("findings")
    if entry is None:  # a summary of an earlier version
        return Findings()
    left_out, duplicates = entry["left_out"], entry["duplicates"]
    return Findings(
        left_out={
            split: {str(reason): int(count) for reason, count in record["reasons"].items()}
            for split, record in left_out.items()
        },
        left_out_files={
            split: list(map(str, record["files"])) for split, record in left_out.items()
        },
        rotated={
            split: sum(map(int, counts.values())) for split, counts in entry["orientations"].items()
        },
        exif_orientation=str(summary["exif_orientation"]),
        across_splits=tuple((str(a), str(b), int(n)) for a, b, n in duplicates["across_splits"]),
        in_two_classes=int(duplicates["in_two_classes"]),
        duplicates=tuple(map(str, duplicates["examples"])),
        similar_classes=tuple(tuple(map(str, names)) for names in entry["similar_classes"]),
        misplaced=tuple((str(a), int(n), str(b)) for a, n, b in entry["misplaced"]),
        ignored=tuple(
            (str(folder), {str(kind): int(count) for kind, count in counts.items()})
            for folder, counts in entry.get("ignored", ())  # earlier versions lack it
        ),
    )


def _split(split: str, entry: dict[str, Any], classes: int) -> SplitSummary:
    per_class = np.array([int(count) for count in entry["per_class"]], dtype=np.int64)
    _expect(
        len(per_class) == classes,
        f"splits.{split}.per_class must have {classes} counts; found {len(per_class)}",
    )
    smallest = int(per_class.min())
    _expect(smallest >= 0, f"splits.{split}.per_class must be at least 0; found {smallest}")
    return SplitSummary(int(entry["examples"]), per_class, int(entry["skipped"]))


def _statistics(entry: dict[str, Any], channels: int) -> Statistics:
    mean, std = (tuple(float(value) for value in entry[name]) for name in ("mean", "std"))
    _expect(
        len(mean) == len(std) == channels,
        f"statistics must have {channels} mean and std; found {len(mean)} and {len(std)}",
    )
    return Statistics(mean, std, str(entry["source"]))


def _pipeline(entry: dict[str, Any]) -> PipelineThroughput:
    seconds, throughput = float(entry["seconds"]), float(entry["images_per_second"])
    finite = math.isfinite(seconds) and math.isfinite(throughput)
    _expect(finite, f"pipeline must have finite numbers; found {seconds} s and {throughput}/s")
    return PipelineThroughput(
        str(entry["name"]), int(entry["batch_size"]), int(entry["images"]), seconds, throughput
    )


def _hardware(entry: dict[str, Any]) -> Hardware:
    return Hardware(str(entry["device"]), int(entry["devices"]), int(entry["cores"]))


def _previews(path: Path, classes: int) -> dict[str, Preview]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {split: _preview(archive, split, classes) for split in PREVIEWED}


def _preview(archive: Any, split: str, classes: int) -> Preview:
    names = [f"{split}_{part}" for part in ("images", "labels")]
    missing = [name for name in names if name not in archive.files]
    _expect(not missing, f"missing {', '.join(missing)}")
    images, labels = (archive[name] for name in names)
    _expect(
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3),
        f"{split}_images must be uint8 [M, H, W, 1 or 3]; found {_type_of(images)}",
    )
    _expect(images.size > 0, f"{split}_images is empty")
    _expect(
        labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer),
        f"{split}_labels must be integers [{len(images)}]; found {_type_of(labels)}",
    )
    _expect(
        bool(((labels >= 0) & (labels < classes)).all()),
        f"{split}_labels must be 0 to {classes - 1}; found {labels.min()} to {labels.max()}",
    )
    return Preview(images, labels)


def _type_of(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
