"""The report of a run: figures, tables and page, from a synthetic run folder."""

import dataclasses
import io
import json
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from run_samples import references, write_run

from imta_jax import report
from imta_jax.evaluation.methods.comparison_record import comparison_record
from imta_jax.evaluation.predictions import checked_predictions
from imta_jax.report.run.page import render_page
from imta_jax.report.run.run_record import load_run
from imta_jax.report.run.summary import cards
from imta_jax.report.run.tables import run_table
from imta_jax.report.style import separate_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run") / "run")
    report.write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report" / "index.html").read_text()


@pytest.fixture
def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_report_has_all_figures_tables_and_the_page(folder):
    names = ["budget_curve", "exit_shares", "gallery", "classes", "exits", "reliability"]
    expected = {f"{name}.png" for name in [*names, "training"]} | {"tables.md", "index.html"}
    assert {path.name for path in (folder / "report").iterdir()} == expected


def test_figures_have_at_least_1200_pixels_of_width(folder):
    for path in (folder / "report").glob("*.png"):
        assert matplotlib.image.imread(io.BytesIO(path.read_bytes())).shape[1] >= 1200, path


def test_the_page_is_self_contained(page):
    parsed = references(page)
    assert parsed.addresses
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", page)


def test_the_page_has_the_numbers_of_the_run(page, results, folder):
    point = report.operating_point(report.load_run(folder))
    assert f"{results['exits'][-1]['top1']:.1f}%" in page
    assert f"{point.top1:.1f}%" in page
    assert f"{1 / point.cost_share:.1f}x less" in page


def test_accuracies_have_one_decimal_everywhere(page):
    shown = page[: page.index("<details>")]
    assert re.search(r"\d\.\d%", shown) and not re.search(r"\d\.\d\d+%", shown)


def test_cards_have_the_first_exit_and_intervals(folder):
    run = report.load_run(folder)
    first, chosen, full, _ = cards(run)
    assert first.value == f"{run.exits['top1'].iloc[0]:.1f}%" and chosen.chosen
    images = run.dataset["examples"]["test"]
    test = scipy.stats.binomtest(round(run.full_top1 / 100 * images), images)
    low, high = (100 * end for end in test.proportion_ci(0.95, "wilson"))
    assert f"95% interval {low:.1f} to {high:.1f}" in full.detail


def test_tables_have_the_numbers_of_results_json(folder, results):
    run = report.load_run(folder)
    exits, budgets = report.exits_table(run), report.budgets_table(run)
    for column, name in {"macs": "multiply-adds", "params": "parameters"}.items():
        assert [int(t.replace(",", "")) for t in exits[name]] == [
            e[column] for e in results["exits"]
        ]
    for column, name in {"top1": "top-1 (%)", "top5": "top-5 (%)", "ece": "ECE (%)"}.items():
        assert exits[name].to_list() == [f"{e[column]:.1f}" for e in results["exits"]]
    areas = [f"{e['auroc']:.3f}" for e in results["exits"]]
    assert exits["AUROC of confidence"].to_list() == areas
    expected = [f"{b['top1']:.1f}" for b in results["reported_budgets"]]
    assert budgets["top-1 (%)"].to_list() == expected
    markdown = (folder / "report" / "tables.md").read_text()
    assert all(text in markdown for text in [*exits.to_numpy().ravel(), *expected])
    assert r"a \| b" in markdown


def test_tables_of_results_without_auroc_or_with_an_undefined_one(folder, tmp_path, results):
    for row, area in zip(results["exits"], (None, 0.9), strict=False):
        row["auroc"] = area
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.exits_table(report.load_run(tmp_path))["AUROC of confidence"][:2].to_list() == [
        "",
        "0.900",
    ]
    for row in results["exits"]:
        del row["auroc"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "AUROC of confidence" not in report.exits_table(report.load_run(tmp_path))


def test_the_operating_point_depends_on_validation_images_only(folder, tmp_path, results):
    before = report.operating_point(report.load_run(folder))
    for row in results["budget_curve"]:
        row["top1"] = 100.0 - row["top1"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "phase_two").symlink_to(folder / "phase_two")
    after = report.operating_point(report.load_run(tmp_path))
    assert after.mean_cost == before.mean_cost
    assert after.top1 == pytest.approx(100.0 - before.top1)


def test_the_operating_point_is_the_best_if_none_is_within_the_tolerance(folder, results):
    run = report.load_run(folder)
    point = report.operating_point(run, tolerance_points=-100)
    best = max(results["budget_curve"], key=lambda row: row["validation_top1"])
    assert point.top1 == best["top1"]


def test_components_other_than_the_defaults_are_listed(folder):
    run = load_run(folder)
    rule = {"exit_rule": "margin", "exit_rule_options": {"power": 2}}
    table = run_table(dataclasses.replace(run, config={"evaluation": rule}))
    values = dict(zip(table["property"], table["value"], strict=True))
    assert values["Exit rule of the thresholds"] == "margin (power=2)"
    assert "Phase-I loss" not in values
    assert values["Command"] == "python launch.py --workdir='a b'"
    assert values["Commit"] == "0123abcd (modified)"


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ({"backbone": "msdnet"}, "MSDNet"),
        ({"backbone": None, "preset": "cifar_5_exits"}, "Network cifar_5_exits"),
        ({"backbone": "my_package.net:make"}, "Network my_package.net:make"),
        ({}, "Network"),
    ],
)
def test_the_page_begins_with_the_network(folder, model, title):
    run = dataclasses.replace(load_run(folder), config={"model": model})
    assert f"{title} with 4 exits, trained on" in render_page(run, {})


def test_hardware_names_the_cpu_if_it_is_recorded(folder):
    def hardware(**environment):
        table = run_table(dataclasses.replace(run, environment=environment))
        return dict(zip(table["property"], table["value"], strict=True))["Hardware"]

    run, devices = load_run(folder), {"device": "cpu", "devices": 1}
    assert hardware(**devices, cpu="AMD EPYC", cores=2) == "1 x cpu (2 cores of AMD EPYC)"
    assert hardware(**devices) == "1 x cpu"


def test_names_are_escaped(tmp_path):
    names = ["<script>alert(1)</script>", "$\\frac{$", "c", "d", "e", "f"]
    folder = write_run(tmp_path / "run", names=names, epochs=(2, 0))
    results = json.loads((folder / "results.json").read_text())
    results["dataset"]["name"] = "<script>alert(2)</script>"
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"x": "<script>alert(3)</script>"}))
    page = report.write_report(folder).read_text()
    assert "script" not in references(page).tags
    assert "&lt;script&gt;alert(2)" in page


@pytest.mark.parametrize("exits", [2, 8])
def test_a_run_of_one_epoch_without_extras_is_reported(tmp_path, exits):
    folder = write_run(tmp_path / "run", exits=exits, epochs=(1, 0))
    for path in (folder / "evaluation").iterdir():
        path.unlink()
    (folder / "report").mkdir()
    (folder / "report" / "gallery.png").write_bytes(b"earlier report")
    assert report.write_report(folder).exists()
    drawn = {path.name for path in (folder / "report").glob("*.png")}
    assert drawn == {"budget_curve.png", "exit_shares.png", "exits.png", "training.png"}


def test_results_json_suffices_for_a_report(tmp_path, results):
    results |= {"reported_budgets": [], "budget_curve": results["budget_curve"][-1:]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = report.write_report(tmp_path).read_text()
    assert "Reported budgets" not in page
    with pytest.raises(ValueError, match=r"gallery\.npz"):
        report.figure_gallery(report.load_run(tmp_path))


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ((0.0, 0.0), "Phase II does not change the exits' validation top-1"),
        ((0.5, 0.5), "by +0.5 points"),
        ((-0.25, 0.5), "by \N{MINUS SIGN}0.2 to +0.5 points"),
    ],
)
def test_the_training_figure_names_the_change_in_phase_two(folder, changes, title):
    run = report.load_run(folder)
    phase_one = [50.0] * run.num_exits
    phase_two = [50.0 + changes[0], *[50.0 + changes[1]] * (run.num_exits - 1)]
    top1 = [phase_one if name == "phase_one" else phase_two for name in run.metrics["phase"]]
    figure = report.figure_training(
        dataclasses.replace(run, metrics=run.metrics.assign(top1_per_exit=top1))
    )
    assert figure.get_suptitle().endswith(title)


@pytest.mark.parametrize(("share", "text"), [(0.0, "none"), (0.002, "under 1%"), (0.3, "30%")])
def test_the_exit_figure_names_the_share_of_the_last_exit(folder, share, text):
    run = report.load_run(folder)
    fractions = [1 - share, *[0.0] * (run.num_exits - 2), share]
    curve = run.budget_curve.assign(exit_fractions=[fractions] * len(run.budget_curve))
    figure = report.figure_exit_shares(dataclasses.replace(run, budget_curve=curve))
    assert figure.get_suptitle().endswith(f"use exit 1 and {text} the last exit")


def test_color_images_and_many_classes_are_drawn(tmp_path):
    images = np.zeros((10, 32, 32, 3), np.uint8)
    names = [f"a class with a long name, number {i}" for i in range(100)]
    run = report.load_run(write_run(tmp_path / "run", names=names, images=images))
    drawn = [image for axes in report.figure_gallery(run).axes for image in axes.get_images()]
    assert [image.get_array().shape for image in drawn] == [(32, 32, 3)] * 10
    shown = report.figure_classes(run).axes[0].get_yticklabels()
    assert len(shown) == 20


def test_labels_are_separated_and_keep_their_order():
    preferred = np.array([3.0, 1.0, 1.1, 1.05, 9.0])
    placed = separate_labels(preferred, 1.0)
    assert np.diff(np.sort(placed)).min() >= 1.0 - 1e-9
    assert (np.argsort(placed) == np.argsort(preferred)).all()
    assert placed[-1] == 9.0
    np.testing.assert_array_equal(separate_labels([1.0, 5.0], 1.0), [1.0, 5.0])


def test_the_report_imports_neither_jax_nor_tensorflow():
    unwanted = "{'jax', 'flax', 'tensorflow'}"
    code = f"import sys, imta_jax.report; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def compared(results, seed=0):
    """Results with a comparison of threshold methods, on synthetic logits."""
    macs = [row["macs"] for row in results["exits"]]
    budgets = [row["budget"] for row in results["reported_budgets"]]
    generator, splits = np.random.default_rng(seed), []
    for count in (200, 300):
        labels = generator.integers(0, 5, count)
        logits = generator.normal(size=(len(macs), count, 5))
        logits[:, np.arange(count), labels] += np.linspace(1, 3, len(macs))[:, None]
        splits.append(checked_predictions((logits, labels), "synthetic"))
    record = comparison_record(*splits, macs, sorted({*budgets, 0.35, 0.8}))
    return results | {"threshold_methods": json.loads(json.dumps(record))}


def test_compared_threshold_methods_are_drawn_and_listed(tmp_path, results):
    results = compared(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = report.write_report(tmp_path).read_text()
    assert "Does it matter how thresholds are chosen?" in page
    assert (tmp_path / "report" / "threshold_methods.png").exists()
    table = report.methods_table(report.load_run(tmp_path))
    points = results["threshold_methods"]["points"]
    shown = [p for p in points if p.get("budget", 0.3) in (0.3, 0.5)]
    assert table["top-1 (%)"].to_list() == [f"{p['top1']:.1f}" for p in shown]
    assert set(table["setting"]) >= {"budget 30%", "2 exits agree", "1 point, 95% sure"}
    markdown = (tmp_path / "report" / "tables.md").read_text()
    assert all(cell in markdown for cell in table.to_numpy().ravel())


def test_threshold_methods_are_optional(folder, results):
    assert "threshold_methods" not in results
    run = report.load_run(folder)
    assert report.methods_table(run).empty
    with pytest.raises(ValueError, match="threshold_methods"):
        report.figure_threshold_methods(run)


@pytest.mark.parametrize(
    ("low", "high", "title"),
    [(-1, 1, "do not differ"), (0.1, 1, "beat the sweep at 4"), (-1, -0.1, "lose to")],
)
def test_the_title_of_methods_follows_from_the_intervals(tmp_path, results, low, high, title):
    results = compared(results)
    for point in results["threshold_methods"]["points"]:
        point |= {"gain_low": low, "gain_high": high}
    (tmp_path / "results.json").write_text(json.dumps(results))
    figure = report.figure_threshold_methods(report.load_run(tmp_path))
    assert title in figure.get_suptitle()
