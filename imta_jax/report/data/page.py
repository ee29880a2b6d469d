"""The report of a dataset: its images, classes and input pipeline, to check before training."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from imta_jax.report.data.class_balance import (
    MAX_BARS,
    MAX_NAME_LENGTH,
    figure_class_balance,
    missing_classes,
)
from imta_jax.report.data.contact_sheet import figure_contact_sheet
from imta_jax.report.data.data_record import SPLITS, DataRecord
from imta_jax.report.data.findings import finding_warnings
from imta_jax.report.data.parsing import load_data_record
from imta_jax.report.dataset_titles import dataset_title
from imta_jax.report.fonts import drawable_name
from imta_jax.report.rendering import (
    FigureImages,
    Section,
    draw_figures,
    render,
    write_figures,
)
from imta_jax.report.style import format_duration, pluralize, quote_names
from imta_jax.runtime.files import write_atomically

MAX_NAMED = 30
CONSEQUENCES = {
    "train": "The network does not learn classes without training images.",
    "validation": "Thresholds are chosen without images of such classes.",
    "test": "Results do not cover such classes.",
}
PIPELINES = {
    "device": "images are stored and augmented on the device",
    "tf_data": "tf.data on the host",
    "numpy": "NumPy on the host",
    "pillow": "Pillow on the host",
}
SECTIONS = (
    Section(
        "contact_sheet_train",
        partial(figure_contact_sheet, split="train"),
        "What do training images look like?",
        "Images with the random augmentation of training. The object should be visible, upright "
        "and in natural colors, and the class name below it should be correct.",
    ),
    Section(
        "contact_sheet_validation",
        partial(figure_contact_sheet, split="validation"),
        "What do evaluation images look like?",
        "Validation images have the preprocessing of test images. They should look like training "
        "images without augmentation.",
    ),
    Section(
        "class_balance",
        figure_class_balance,
        "Are the classes balanced?",
        "Images per class in each split, with one scale per split. Classes without images are red. "
        "Accuracy is a mean over images, so a small class has little effect on it.",
    ),
)


def write_data_page(folder: str | Path) -> Path:
    """Writes the report of a dataset: two contact sheets, the class balance and a page.

    Args:
      folder: `DIR/data` with `summary.json` and `preview.npz`, where DIR is the run's folder. The
        figures (`contact_sheet_train.png`, `contact_sheet_validation.png`, `class_balance.png`)
        and `index.html` are written into it.

    Returns:
      Path of `index.html`, which is written last.

    Raises:
      FileNotFoundError: `summary.json` or `preview.npz` does not exist.
      ValueError: one of them is damaged or incomplete. Both messages name the file and the command
        that writes it.
    """
    record = load_data_record(folder)
    # Browsers have more fonts than figures: the page shows all names.
    drawable = tuple(drawable_name(name, k) for k, name in enumerate(record.class_names))
    figures = draw_figures(replace(record, class_names=drawable), SECTIONS)
    write_figures(record.folder, SECTIONS, figures)
    write_atomically(record.folder / "index.html", render_data_page(record, figures))
    return record.folder / "index.html"


def render_data_page(record: DataRecord, figures: dict[str, FigureImages]) -> str:
    """The page as self-contained HTML; `figures` has the figures by section name."""
    return render(
        "data_page.html.jinja",
        SECTIONS,
        figures,
        data=record,
        lead=_lead(record),
        warnings=data_warnings(record),
        tiles=_tiles(record),
        title=dataset_title(record.dataset),
        properties=dataset_table(record),
        classes=classes_table(record),
        max_open_classes=MAX_BARS,
    )


def data_warnings(record: DataRecord) -> list[tuple[str, str]]:
    """Problems of the dataset as (problem, detail): classes without images, and findings."""
    warnings = []
    for split in SPLITS:
        missing = record.classes_without(split)
        if missing:
            # A single class is named by the problem itself.
            listed = quote_names(missing, MAX_NAMED, MAX_NAME_LENGTH)
            names = f"{listed}. " if len(missing) > 1 else ""
            problem = missing_classes(record, split) + (":" if names else ".")
            warnings.append((problem, names + CONSEQUENCES[split]))
    return warnings + finding_warnings(record)


def dataset_table(record: DataRecord) -> pd.DataFrame:
    """Dataset, preprocessing and pipeline throughput, in columns `property` and `value`."""
    statistics, pipeline, hardware = record.statistics, record.pipeline, record.hardware
    rows = [
        ("Dataset", record.dataset),
        ("Source", record.source),
        ("Classes", f"{record.num_classes:,}"),
        ("Image height, width, channels", " x ".join(map(str, record.image_shape))),
        *((f"{name.capitalize()} images", _split(record, s)) for s, name in SPLITS.items()),
        ("Preprocessing", record.preprocessing),
        ("EXIF orientation", _exif(record)),
        ("Mean per channel (pixels from 0 to 1)", _numbers(statistics.mean)),
        ("Standard deviation per channel", _numbers(statistics.std)),
        ("Normalization statistics", statistics.source),
        ("Pipeline", _pipeline(pipeline.name)),
        (
            "Pipeline throughput",
            f"{pipeline.images_per_second:,.0f} images per second: {pipeline.images:,} in "
            f"{format_duration(pipeline.seconds)}, in batches of {pipeline.batch_size:,}",
        ),
        (
            "Hardware",
            f"{hardware.devices} x {hardware.device}, {pluralize(hardware.cores, 'CPU core')}",
        ),
    ]
    return pd.DataFrame(rows, columns=["property", "value"])


def classes_table(record: DataRecord) -> pd.DataFrame:
    """One row per class with its number, name and images in each split, as text."""
    counts = {
        name: [f"{count:,}" for count in record.splits[split].per_class]
        for split, name in SPLITS.items()
    }
    numbers = [str(k) for k in range(record.num_classes)]
    return pd.DataFrame({"class": numbers, "name": record.class_names, **counts})


def _lead(record: DataRecord) -> str:
    """One sentence with the numbers of training images and classes."""
    images = pluralize(record.splits["train"].examples, "image")
    return f"{images} for training, {pluralize(record.num_classes, 'class', 'classes')}."


def _tiles(record: DataRecord) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the numbers at the top of the page."""
    splits, counts = record.splits, record.splits["train"].per_class
    others = [f"{splits[s].examples:,} {SPLITS[s]}" for s in ("validation", "test")]
    smallest = quote_names(
        [record.class_names[k] for k in (counts == counts.min()).nonzero()[0]], 1, 24
    )
    return [
        (
            "Training images",
            f"{splits['train'].examples:,}",
            f"and {' and '.join(others)} images",
        ),
        ("Smallest class", f"{counts.min():,}", f"{smallest}; the largest has {counts.max():,}"),
        ("Images per second", f"{record.pipeline.images_per_second:,.0f}", _epoch(record)),
    ]


def _epoch(record: DataRecord) -> str:
    """The minimum time of an epoch at the pipeline's throughput."""
    if record.epoch_seconds is None:
        return _pipeline(record.pipeline.name)
    return f"at least {format_duration(record.epoch_seconds)} per epoch"


def _split(record: DataRecord, split: str) -> str:
    summary = record.splits[split]
    skipped = pluralize(summary.skipped, "file") if summary.skipped else "no file"
    return f"{summary.examples:,}, {skipped} left out"


def _exif(record: DataRecord) -> str:
    done = {"ignore": "ignored", "apply": "applied"}[record.findings.exif_orientation]
    return f"{done}; {pluralize(sum(record.findings.rotated.values()), 'image')} with one"


def _pipeline(name: str) -> str:
    return f"{name}: {PIPELINES[name]}" if name in PIPELINES else name


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
