"""The page about a run's data: what a careful person looks at before a long run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from imta_jax.report.data.class_balance import (
    LONGEST_NAME,
    MOST_BARS,
    figure_class_balance,
    unseen_finding,
)
from imta_jax.report.data.contact_sheet import figure_contact_sheet
from imta_jax.report.data.record import SPLITS, DataRecord, load_data_record
from imta_jax.report.rendering import (
    Section,
    draw_figures,
    render,
    write_figures,
)
from imta_jax.report.run.tables import duration
from imta_jax.report.style import pluralize, quote_names
from imta_jax.runtime.files import write_atomically

MOST_NAMED = 30
CONSEQUENCES = {
    "train": "The network cannot learn what it never sees.",
    "validation": "Thresholds are chosen without such images.",
    "test": "Results cannot tell how well such images are classified.",
}
PIPELINES = {
    "device": "images wait on the device, which also augments them",
    "tf_data": "tf.data on the host",
    "numpy": "NumPy on the host",
}
SECTIONS = (
    Section(
        "contact_sheet_train",
        partial(figure_contact_sheet, split="train"),
        "What is the network trained on?",
        "Each image after the random changes of training. Its class should still be there to be "
        "seen, upright, in its right colors, and the name beneath should be the right one.",
    ),
    Section(
        "contact_sheet_validation",
        partial(figure_contact_sheet, split="validation"),
        "What is it judged on?",
        "Validation images are prepared as test images are. They should look like the training "
        "images, but for the random changes.",
    ),
    Section(
        "class_balance",
        figure_class_balance,
        "Has each class its share?",
        "Images per class in each split, every split on its own scale; a class without any is red. "
        "Accuracies count images, not classes: a small class hardly moves them.",
    ),
)


def write_data_page(folder: str | Path) -> Path:
    """Draws a run's data: two contact sheets, the class balance, and a page that embeds them.

    Args:
      folder: `DIR/data` with `summary.json` and `preview.npz`, where DIR is the run's folder; the
        figures (`contact_sheet_train.png`, `contact_sheet_validation.png`, `class_balance.png`)
        and `index.html` are written into it too.

    Returns:
      The path of `index.html`, which is written last: where it is new, all else is.

    Raises:
      FileNotFoundError: `summary.json` or `preview.npz` is not there.
      ValueError: one of them is damaged or lacks a part. Either message names the file and the
        command that writes it.
    """
    record = load_data_record(folder)
    figures = draw_figures(record, SECTIONS)
    write_figures(record.folder, SECTIONS, figures)
    write_atomically(record.folder / "index.html", render_data_page(record, figures))
    return record.folder / "index.html"


def render_data_page(record: DataRecord, figures: dict[str, bytes]) -> str:
    """The page as HTML that embeds the figures (PNG by section name) and refers to nothing."""
    return render(
        "data_page.html.jinja",
        SECTIONS,
        figures,
        data=record,
        lead=_lead(record),
        warnings=data_warnings(record),
        tiles=_tiles(record),
        facts=data_facts(record),
        classes=classes_table(record),
        most_open=MOST_BARS,
    )


def data_warnings(record: DataRecord) -> list[tuple[str, str]]:
    """What is wrong with the data, as (claim, detail): classes without images, skipped files."""
    warnings = []
    for split in SPLITS:
        unseen = record.classes_without(split)
        if unseen:
            # A single one is named by the finding.
            names = f"{quote_names(unseen, MOST_NAMED, LONGEST_NAME)}. " if len(unseen) > 1 else ""
            claim = unseen_finding(record, split) + (":" if names else ".")
            warnings.append((claim, names + CONSEQUENCES[split]))
    for split, name in SPLITS.items():
        facts = record.splits[split]
        if facts.skipped:
            claim = f"{pluralize(facts.skipped, f'{name} file')} skipped."
            warnings.append((claim, f"{pluralize(facts.examples, 'image')} left."))
    return warnings


def data_facts(record: DataRecord) -> pd.DataFrame:
    """What the data are and how fast they come: two columns, `fact` and `value`."""
    statistics, pipeline, machine = record.statistics, record.pipeline, record.machine
    facts = [
        ("Data", record.dataset),
        ("Source", record.source),
        ("Classes", f"{record.num_classes:,}"),
        ("Image height, width, channels", " x ".join(map(str, record.image_shape))),
        *((f"{name.capitalize()} images", _split(record, s)) for s, name in SPLITS.items()),
        ("Preprocessing", record.preprocessing),
        ("Mean per channel, of pixels from 0 to 1", _numbers(statistics.mean)),
        ("Standard deviation per channel", _numbers(statistics.std)),
        ("Normalized by", statistics.source),
        ("Pipeline", _pipeline(pipeline.name)),
        (
            "Speed of the pipeline",
            f"{pipeline.images_per_second:,.0f} images per second: {pipeline.images:,} in "
            f"{duration(pipeline.seconds)}, in batches of {pipeline.batch_size:,}",
        ),
        (
            "Hardware",
            f"{machine.devices} x {machine.device}, {pluralize(machine.cores, 'CPU core')}",
        ),
    ]
    return pd.DataFrame(facts, columns=["fact", "value"])


def classes_table(record: DataRecord) -> pd.DataFrame:
    """One row per class: its number, name and images in each split, as texts."""
    counts = {
        name: [f"{count:,}" for count in record.splits[split].per_class]
        for split, name in SPLITS.items()
    }
    numbers = [str(k) for k in range(record.num_classes)]
    return pd.DataFrame({"class": numbers, "name": record.class_names, **counts})


def _lead(record: DataRecord) -> str:
    """One sentence: how many images of what."""
    images = pluralize(record.splits["train"].examples, "image")
    return f"{images} to train on, of {pluralize(record.num_classes, 'class', 'classes')}."


def _tiles(record: DataRecord) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the numbers that open the page."""
    splits, counts = record.splits, record.splits["train"].per_class
    others = [f"{splits[s].examples:,} {SPLITS[s]}" for s in ("validation", "test")]
    rarest = quote_names(
        [record.class_names[k] for k in (counts == counts.min()).nonzero()[0]], 1, 24
    )
    return [
        (
            "Training images",
            f"{splits['train'].examples:,}",
            f"beside {' and '.join(others)} images",
        ),
        ("Fewest of a class", f"{counts.min():,}", f"{rarest}; at most {counts.max():,}"),
        ("Images per second", f"{record.pipeline.images_per_second:,.0f}", _epoch(record)),
    ]


def _epoch(record: DataRecord) -> str:
    """What the pipeline's speed means for a run."""
    if record.epoch_seconds is None:
        return _pipeline(record.pipeline.name)
    return f"an epoch cannot take less than {duration(record.epoch_seconds)}"


def _split(record: DataRecord, split: str) -> str:
    facts = record.splits[split]
    skipped = f"{pluralize(facts.skipped, 'file')} skipped" if facts.skipped else "no file skipped"
    return f"{facts.examples:,}, {skipped}"


def _pipeline(name: str) -> str:
    return f"{name}: {PIPELINES[name]}" if name in PIPELINES else name


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
