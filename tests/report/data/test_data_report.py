"""The report of a dataset, from synthetic folders in the format of `launch.py --mode=data`."""

import dataclasses
import html
import io
import json
import re

import matplotlib.image
import numpy as np
import pytest
from dataset_samples import changed, write_data
from run_samples import CLOTHES, references, without_attributes

from imta_jax import report
from imta_jax.report import fonts
from imta_jax.report.data.contact_sheet import sheet_layout
from imta_jax.report.data.page import render_data_page
from imta_jax.report.style import format_duration

FIGURES = {"contact_sheet_train.png", "contact_sheet_validation.png", "class_balance.png"}


FINDINGS = {
    "left_out": {
        "train": {"reasons": {"truncated": 2, "empty file": 1}, "files": ["a.jpg (truncated)"]},
        "test": {"reasons": {}, "files": []},
    },
    "orientations": {"train": {"6": 11, "8": 1}, "test": {}},
    "duplicates": {
        "across_splits": [["test", "train", 10]],
        "in_two_classes": 4,
        "examples": ["train/a.jpg = test/b.jpg"],
    },
    "similar_classes": [["Shirt", "shirt"]],
    "misplaced": [["/data/val", 5, "move them to /data/val/CLASS"]],
    "ignored": [["/data/train", {".webp": 1200, "no extension": 1}]],
}


def test_findings_are_on_the_page_with_their_fixes(tmp_path):
    folder = write_data(tmp_path / "data", skipped=3)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"exif_orientation": "ignore", "findings": FINDINGS}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = html.unescape(report.write_data_page(folder).read_text())
    for text in (
        "3 training files left out",
        "truncated (2), empty file (1)",
        "a.jpg (truncated)",
        "12 training images with an EXIF orientation",
        "config.data.exif_orientation=apply",
        "10 test images also among the training images",
        "4 images with equal ones in another class",
        "train/a.jpg = test/b.jpg",
        "'Shirt', 'shirt'",
        "5 images in /data/val not read",
        "move them to /data/val/CLASS",
        "1,201 files or folders in the class folders of /data/train not read",
        ".webp (1,200), no extension (1)",
    ):
        assert text in page
    del summary["findings"]["ignored"]  # an earlier version
    summary["exif_orientation"] = "apply"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "applied; 12 images with one" in report.write_data_page(folder).read_text()


def test_figures_show_numbers_of_classes_that_no_font_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "FALLBACK_FAMILIES", ())
    fonts._drawable_characters.cache_clear()
    name = "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}"
    folder = write_data(tmp_path / "data", names=("cat", name))
    assert name in report.write_data_page(folder).read_text()  # No warning "Glyph missing".
    fonts._drawable_characters.cache_clear()


def numbered(classes):
    return [f"class {i:04d}" for i in range(classes)]


def texts(figure):
    """All texts of a figure, tick labels and titles included."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("run") / "data")
    assert report.write_data_page(folder) == folder / "index.html"
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "index.html").read_text()


def test_the_folder_has_three_figures_and_the_page(folder):
    inputs = {"preview.npz", "summary.json"}
    assert {path.name for path in folder.iterdir()} == FIGURES | {"index.html"} | inputs


def test_the_page_is_self_contained(page):
    parsed = references(page)
    assert len(parsed.addresses) == 2 * len(FIGURES)  # light and dark
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", page)


def test_the_page_has_the_properties_of_the_dataset(page):
    for text in ("8,500", "1,500", "2,000", "no file left out", "32 x 32 x 1", "/data/clothes.npz"):
        assert text in page
    for text in ("Cropped at random", "0.2500", "0.5000", "computed", "3,200 images per second"):
        assert text in page
    assert "8 x NVIDIA H200, 16 CPU cores" in page
    assert "at least 2.7 s per epoch" in page


def test_the_page_has_the_name_of_the_dataset_in_publications(folder):
    record = dataclasses.replace(report.load_data_record(folder), dataset="cifar100")
    assert "<h1>CIFAR-100: dataset report</h1>" in render_data_page(record, {})


@pytest.mark.parametrize("classes", [1, 2, 24, 25, 100, 1000])
def test_every_class_is_on_the_page_with_its_counts(tmp_path, classes):
    names, counts = numbered(classes), list(range(1001, 1001 + classes))
    folder = write_data(tmp_path / "data", names=names, counts=counts, shape=(16, 16, 3))
    page = report.write_data_page(folder).read_text()
    shown = without_attributes(page)
    cells = [f"<td>{name}</td><td>{n:,}</td>" for name, n in zip(names, counts, strict=True)]
    assert all(cell in shown for cell in cells)
    assert "no training image" not in page


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_figure_and_page_name_a_class_without_training_images(tmp_path, classes):
    names, counts = numbered(classes), [500] * classes
    names[1], counts[1] = "empty class", 0
    folder = write_data(tmp_path / "data", names=names, counts=counts)
    page = report.write_data_page(folder).read_text()
    assert "“empty class” has no training image" in page.split("<section>")[0]
    drawn = texts(report.figure_class_balance(report.load_data_record(folder)))
    assert "“empty class” has no training image" in drawn
    assert any("none" in text for text in drawn)


def test_many_classes_without_images_are_counted_and_the_first_named(tmp_path):
    names, counts = numbered(100), [500] * 50 + [0] * 50
    folder = write_data(tmp_path / "data", names=names, counts=counts)
    page = report.write_data_page(folder).read_text()
    assert "50 of 100 classes have no training image" in page
    assert "“class 0050”" in page and "and 20 more" in page
    drawn = " ".join(texts(report.figure_class_balance(report.load_data_record(folder))))
    drawn = drawn.replace("\N{NO-BREAK SPACE}", " ")
    assert "none: “class 0050”" in drawn and "and 44 more" in drawn


def test_warnings_appear_only_for_problems(tmp_path, page):
    assert 'class="warnings"' not in page
    folder = write_data(tmp_path / "data", skipped=3)
    assert "3 test files left out" in report.write_data_page(folder).read_text()


def test_class_names_are_escaped_and_not_parsed_as_math(tmp_path):
    names = ["<script>alert(1)</script>", "$\\frac{$", "c & d", '"e"']
    page = report.write_data_page(write_data(tmp_path / "data", names=names)).read_text()
    assert "script" not in references(page).tags
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in without_attributes(page)
    assert "c &amp; d" in page


@pytest.mark.parametrize("shape", [(16, 16, 1), (28, 20, 3), (64, 256, 3), (224, 224, 3)])
def test_a_sheet_has_every_pixel_of_its_images(tmp_path, shape):
    folder = write_data(tmp_path / "data", shape=shape, shown=(13, 1))
    report.write_data_page(folder)
    png = matplotlib.image.imread(io.BytesIO((folder / "contact_sheet_train.png").read_bytes()))
    drawn = np.round(255 * png[..., :3]).astype(np.uint8)
    layout = sheet_layout(13, *shape[:2])
    drawn = drawn[len(drawn) - layout.height :]
    for index, image in enumerate(np.load(folder / "preview.npz")["train_images"]):
        top, left = layout.corner(index)
        part = drawn[top : top + layout.side[0], left : left + layout.side[1]]
        expected = image.repeat(layout.scale, 0).repeat(layout.scale, 1)
        np.testing.assert_array_equal(part, np.broadcast_to(expected, part.shape))


@pytest.mark.parametrize("shape", [(16, 16, 1), (200, 20, 3), (256, 256, 3)])
def test_names_below_images_do_not_overlap(tmp_path, shape):
    names = ["WWW WWW WWW WWW WWW WWW WWW", "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii", "bag", ""]
    folder = write_data(tmp_path / "data", names=names, shape=shape, shown=(8, 8))
    figure = report.figure_contact_sheet(report.load_data_record(folder), "validation")
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    assert boxes and min(box.x0 for box in boxes) >= 0
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_sheet_has_at_most_48_images_and_the_total(tmp_path):
    folder = write_data(tmp_path / "data", shown=(60, 1))
    figure = report.figure_contact_sheet(report.load_data_record(folder))
    assert len(figure.axes[0].texts) == 48
    assert any("48 of 8,500 images" in text for text in texts(figure))


def test_few_classes_are_bars_and_many_are_a_falling_curve(tmp_path):
    few = report.figure_class_balance(report.load_data_record(write_data(tmp_path / "few")))
    assert [len(axes.patches) for axes in few.axes] == [len(CLOTHES)] * 3
    counts = np.random.default_rng(1).integers(1, 900, size=1000).tolist()
    folder = write_data(tmp_path / "many", names=numbered(1000), counts=counts)
    many = report.figure_class_balance(report.load_data_record(folder))
    curve = many.axes[0].patches[0].get_data().values
    assert (np.diff(curve) <= 0).all() and curve.sum() == sum(counts)


def test_an_unknown_throughput_is_omitted(tmp_path):
    folder = write_data(tmp_path / "data")
    changed(folder, lambda summary: summary["pipeline"].update(images_per_second=0.0, name="new"))
    assert "per epoch" not in report.write_data_page(folder).read_text()


def test_durations_have_about_two_digits():
    assert [format_duration(t) for t in (0.0213, 7.31, 42, 185, 42_000)] == [
        "0.021 s",
        "7.3 s",
        "42 s",
        "3 min 05 s",
        "11 h 40 min",
    ]
