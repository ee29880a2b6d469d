"""The study report: tables, figures and page of the synthetic studies of `study_samples`."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import study_samples as samples
from run_samples import references

from imta_jax.report.style import format_signed
from imta_jax.studies import report
from imta_jax.studies.__main__ import main
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.curves import curve_at, curve_gains, variant_curves
from imta_jax.studies.report.entries import collect_entries
from imta_jax.studies.report.page import report_markdown, with_code
from imta_jax.studies.report.parsing import parse_study
from imta_jax.studies.report.study_tables import gains_at, nearly_best, ranked_settings
from imta_jax.studies.report.style import BASELINE, FULL

PROVENANCE = (
    "fashion_mnist_small (9,000 training",
    "phase I: 5 epochs (batch size 64)",
    "seeds 0, 1, 2",
)


def variant_of(study, name):
    return next(variant for variant in study.variants if variant.name == name)


def accuracies(study, name, key="top1"):
    """[seeds, exits], read directly from the rows of `study.json`."""
    rows = [r for r in study["rows"] if r["arm"] == name and r["status"] == "done"]
    return np.array([[one[key] for one in row["exits"]] for row in rows])


def texts(figure):
    return [one.get_text() for one in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    assert report.write_study_report(samples.all_studies(), folder) == folder / "index.html"
    return folder


# The paper's numbers


@pytest.mark.parametrize("printed", [52, 581, 137.3])
def test_table_one_has_the_printed_costs(printed):
    assert printed in [row.madds for row in paper.TABLE_ONE]


def test_printed_full_method_gains_at_every_exit():
    for table in paper.ABLATIONS:
        plain, full = table.top1[frozenset()], table.top1[frozenset(paper.TECHNIQUES)]
        assert len(table.top1) == 5 and all(np.array(full) > plain)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("cifar100", "cifar100"),
        ("CIFAR-100", "cifar100"),
        ("imagenet2012", "imagenet"),
        ("fashion_mnist_small", None),
        ("cifar10_small", None),
        (None, None),
    ],
)
def test_only_the_papers_datasets_are_known(name, known):
    assert paper.known_dataset(name) == known


def test_every_reading_has_a_source_and_rising_costs():
    for reading in paper.READINGS:
        costs = [cost for cost, _ in reading.points]
        assert reading.source and reading.uncertainty > 0 and costs == sorted(costs)


# Tables


def test_ablation_cells_are_means_and_deviations_of_the_rows():
    study = samples.ablation()
    frame = report.ablation_table(parse_study(study)).frame
    ours = frame[frame["source"].str.startswith("ours, fashion")]
    values = accuracies(study, "GE")
    both = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
    expected = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in both]
    assert ours.iloc[1][["E-1", "E-2", "E-3", "E-4", "E-5"]].to_list() == expected


def test_differences_are_paired_by_seed_and_omit_failed_seeds():
    study = samples.ablation()
    frame = report.ablation_table(parse_study(study)).frame
    isc = frame[(frame["ISC"] == "✓") & (frame["GE"] == "-")]
    paired = accuracies(study, "ISC") - accuracies(study, "none")[:2]
    expected = f"{format_signed(paired[:, 0].mean(), 2)} ± {paired[:, 0].std(ddof=1):.2f}"
    assert isc[isc["source"].str.contains("baseline")]["E-1"].item() == expected
    assert "2 of 3, 1 failed" in isc["finished seeds"].to_list()


def test_a_variant_without_runs_has_empty_cells():
    frame = report.ablation_table(parse_study(samples.ablation())).frame
    ofa = frame[(frame["OFA"] == "✓") & (frame["GE"] == "-")]
    ours = ofa[ofa["source"].str.startswith("ours, fashion")]
    assert ours["finished seeds"].to_list() == ["not run"]
    assert not "".join(ours[["E-1", "E-5"]].to_numpy().ravel())


def test_a_failed_run_is_listed_with_its_error():
    table = report.ablation_table(parse_study(samples.ablation()))
    assert "Failed: ISC, seed 2: loss not finite at step 12" in table.notes
    alone = samples.ablation(fail=[("GE", seed) for seed in range(3)])
    frame = report.ablation_table(parse_study(alone)).frame
    assert "failed" in frame["finished seeds"].to_list()


@pytest.mark.parametrize(("dataset", "number"), [("cifar100", 2), ("imagenet", 3), ("other", 2)])
def test_the_papers_rows_name_their_dataset(dataset, number):
    table = report.ablation_table(parse_study(samples.ablation(dataset=dataset)))
    printed = paper.ABLATIONS[number - 2]
    first = table.frame.iloc[0]
    assert f"Table {number}" in table.heading
    assert first["source"] == f"paper, {paper.DATASET_NAMES[printed.dataset]}"
    assert first["E-5"] == f"{printed.top1[frozenset()][4]:.2f}"
    assert any("not the accuracies" in note for note in table.notes) == (dataset == "other")


def test_table_one_has_every_printed_row_with_ours():
    study = samples.exits(dataset="cifar100")
    frame = report.classifiers_table(parse_study(study)).frame.set_index("model")
    assert len(frame) == len(paper.TABLE_ONE)
    values = accuracies(study, "all")[:, 6]
    row = frame.loc["Ours-Exit7"]
    assert row["paper: top-1"] == "75.96"
    assert row["ours: top-1"] == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert frame.loc["Hydra-Res-d2", "ours: finished seeds"] == "1 of 3"
    # One seed has no standard deviation.
    assert re.fullmatch(r"\d\d\.\d\d", frame.loc["Hydra-Res-d2", "ours: top-1"])
    assert frame.loc["Hydra-Res-d9", "ours: finished seeds"] == "not run"


def test_table_one_marks_exits_that_our_network_lacks():
    study = samples.exits()
    study["rows"] = [samples.synthetic_row(name, 0, exits=5) for name in ("plain", "all")]
    frame = report.classifiers_table(parse_study(study)).frame.set_index("model")
    assert frame.loc["MSDNet-Exit5", "ours: finished seeds"] == "1 of 3"
    assert frame.loc["MSDNet-Exit6", "ours: finished seeds"] == "no such exit"


def test_variants_with_equal_techniques_show_their_labels():
    study = samples.ablation()
    study["arms"]["coarse"] = samples.variant("GE, coarsest map", ["GE"])
    sources = report.ablation_table(parse_study(study)).frame["source"].to_list()
    assert "ours, fashion_mnist_small (GE, coarsest map)" in sources
    assert "ours, fashion_mnist_small (GE)" in sources


def test_variants_that_the_paper_lacks_have_own_rows_in_table_one():
    study = samples.exits()
    study["arms"]["GE"] = samples.variant("only GE", ["GE"], "cifar_7_exits")
    study["rows"].append(samples.synthetic_row("GE", 0, exits=7))
    study["arms"]["later"] = samples.variant("later", ["OFA"], "cifar_7_exits")
    frame = report.classifiers_table(parse_study(study)).frame
    assert "only GE-Exit7" in frame["model"].to_list()
    assert frame[frame["model"] == "later"]["ours: finished seeds"].item() == "not run"


def test_differences_are_taken_within_a_network_only():
    study = parse_study(samples.budget())
    frame = report.budget_table(study).frame.set_index("variant")
    assert frame.loc["resnet_20", "last exit minus baseline"] == ""
    assert frame.loc["Ours, 8 exits", "last exit minus baseline"].startswith("+")
    assert study.baseline_of(variant_of(study, "all_8")).name == "plain_8"


def test_settings_are_ranked_by_validation_images():
    study = samples.distillation()
    ranked = [variant.name for variant in ranked_settings(parse_study(study))]
    means = [accuracies(study, name, "validation_top1").mean() for name in ranked]
    assert means == sorted(means, reverse=True)
    deviation = accuracies(study, ranked[0], "validation_top1").mean(axis=1).std(ddof=1)
    near = sum(mean >= means[0] - deviation for mean in means)
    assert nearly_best(parse_study(study)).startswith(f"{near} of {len(ranked)} settings")
    frame = report.distillation_table(parse_study(study)).frame
    assert frame.iloc[-1]["finished seeds"] == "not run" and frame.iloc[-1]["rank"] == ""


def test_one_seed_has_no_deviation_to_compare_settings_with():
    assert "has one seed" in nearly_best(parse_study(samples.distillation(seeds=1)))


def test_equilibrium_table_has_both_sides_of_equation_3():
    study = samples.equilibrium()
    frame = report.equilibrium_table(parse_study(study)).frame
    results = [row["gradient_variance"] for row in study["rows"] if row["arm"] == "off"]
    rows = frame[frame["variant"] == "without GE"].set_index("row")
    total = np.mean([one["stages"][0] for one in results])
    losses = np.mean([sum(one["losses"][0]) for one in results])
    assert rows.loc["gradient variance", "E-1"] == f"{total:.3g}"
    assert rows.loc["sum of the losses' variances", "E-1"] == f"{losses:.3g}"


def test_every_table_has_the_provenance_line():
    entries = collect_entries([parse_study(study) for study in samples.all_studies()])
    tables = [entry.table for entry in entries if entry.table]
    ours = [table for table in tables if "not run; " not in table.provenance]
    assert len(ours) == 5
    assert all(part in table.markdown() for table in ours for part in (*PROVENANCE, "1 x cpu"))


# Curves


def test_a_budget_curve_passes_through_its_points_and_is_nan_outside():
    row = samples.synthetic_row("all", 0)
    costs = np.array([point["mean_macs"] for point in row["budget_curve"]])
    top1 = [point["top1"] for point in row["budget_curve"]]
    np.testing.assert_allclose(curve_at(row, costs), top1)
    assert np.isnan(curve_at(row, np.array([0.5 * costs[0], 2 * costs[-1]]))).all()


def test_gains_over_the_baseline_are_paired_at_equal_cost():
    study = parse_study(samples.ablation())
    costs, gains = curve_gains(study, variant_of(study, "GE"))
    own, plain = (variant_curves(study, variant_of(study, name)) for name in ("GE", "none"))
    np.testing.assert_allclose(costs, own[0])
    np.testing.assert_allclose(gains, own[1] - plain[1])
    assert not len(curve_gains(study, variant_of(study, "none"))[0])


def test_the_gain_at_a_cost_is_that_of_the_interpolated_curves():
    study = samples.budget()
    rows = {name: [r for r in study["rows"] if r["arm"] == name] for name in ("all_8", "plain_8")}
    there = [[curve_at(r, np.array([1e8]))[0] for r in rows[name]] for name in rows]
    record = parse_study(study)
    gains = gains_at(record, variant_of(record, "all_8"), 1e8)
    # The common grid of costs adds an interpolation error.
    np.testing.assert_allclose(gains, np.subtract(*there), atol=0.1)
    frame = report.budget_table(record).frame.set_index("variant")
    gain = format_signed(gains.mean(), 2)
    assert frame.loc["Ours, 8 exits", "gain at 100 M"].startswith(gain)
    assert frame.loc["Ours, 4 exits", "gain at 100 M"] == ""


# Figures


def test_budget_figure_has_curves_and_points_of_single_exit_networks():
    axes = report.figure_study_budget(parse_study(samples.budget())).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 10]
    assert sorted(line.get_color() for line in curves) == 3 * [FULL] + 3 * [BASELINE]
    legend = legend_of(axes)
    assert {"ResNet", "DenseNet"} <= set(legend) and not [t for t in legend if "read by" in t]
    resnet = next(line for line in axes.lines if line.get_label() == "ResNet")
    assert len(resnet.get_xdata()) == 3


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet"])
def test_readings_are_drawn_for_their_own_dataset_only(dataset):
    study = parse_study(samples.budget(dataset=dataset, seeds=1))
    drawn = [t for t in legend_of(report.figure_study_budget(study).axes[0]) if "read by" in t]
    assert len(drawn) == len(paper.readings_of(dataset))
    assert all(any(r.source in text for text in drawn) for r in paper.readings_of(dataset))


def test_ablation_figure_has_every_variant_and_its_gain():
    above, below = report.figure_ablation(parse_study(samples.ablation())).axes
    assert {"plain", "GE", "OFA (not run)", "GE + ISC + OFA"} < set(legend_of(above))
    gains = [line for line in below.lines if len(line.get_xdata()) > 10]
    assert len(gains) == 3  # GE, ISC and all techniques.


def test_validation_figure_has_two_panels_per_network():
    figure = report.figure_validation(parse_study(samples.equilibrium()))
    assert len(figure.axes) == 2 and [len(axes.lines) for axes in figure.axes] == [3, 3]
    figure = report.figure_validation(parse_study(samples.budget()))
    assert len(figure.axes) == 6 and all(len(axes.lines) == 2 for axes in figure.axes)


def test_rank_figure_has_points_identity_and_correlations():
    study = samples.ablation()
    axes = report.figure_ranks(parse_study(study)).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [400, 400, 2]
    values = [row["rank_correlation"] for row in study["rows"] if row["arm"] == "none"]
    text = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert text in legend_of(axes)[0]


def test_distillation_figure_has_a_cell_per_setting():
    figure = report.figure_distillation(parse_study(samples.distillation()))
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.images[0].get_array().shape for axes in panels] == [(3, 3), (3, 3)]
    assert "teacher phase_one" in panels[1].get_title(loc="left")
    assert "not\nrun" in texts(figure) and any("without OFA" in text for text in texts(figure))


def test_variance_figure_is_logarithmic_with_both_sides_per_variant():
    axes = report.figure_gradient_variance(parse_study(samples.equilibrium())).axes[0]
    assert axes.get_yscale() == "log" and len(legend_of(axes)) == 2 * 3


@pytest.mark.parametrize(
    ("draw", "study"),
    [
        (report.figure_study_budget, samples.budget(seeds=1)),
        (report.figure_ablation, samples.ablation()),
        (report.figure_validation, samples.equilibrium()),
        (report.figure_ranks, samples.ablation()),
        (report.figure_distillation, samples.distillation(seeds=1)),
        (report.figure_gradient_variance, samples.equilibrium()),
    ],
)
def test_every_figure_has_the_provenance_line_and_a_title_that_fits(draw, study):
    figure = draw(parse_study(study))
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1
    below = figure.get_supxlabel().replace("\n", " ")
    assert "fashion_mnist_small (9,000 training" in below and "1 x cpu" in below


@pytest.mark.parametrize("change", ["no rows", "all failed", "one row"])
@pytest.mark.parametrize("study", samples.all_studies(), ids=lambda study: study["study"])
def test_incomplete_studies_are_drawn(study, change):
    rows = {
        "no rows": [],
        "all failed": [samples.failed_row(name, 0) for name in study["arms"]],
        "one row": study["rows"][:1],
    }[change]
    dataset = study["dataset"] if change == "one row" else None
    entries = collect_entries([parse_study({**study, "rows": rows, "dataset": dataset})])
    markdown = report_markdown(entries)
    assert "not run" in markdown
    if change == "all failed":
        assert "loss not finite" in markdown


# The folder


def test_missing_studies_show_the_command_to_run(tmp_path):
    page = report.write_study_report([], tmp_path).read_text()
    for study in ("exits", "ablation", "budget", "equilibrium", "distillation"):
        assert f"The study <code>{study}</code> has not been run" in page
        assert f"--config=configs/studies/{study}.py" in page
    for printed in ("75.96", "73.45", "72.43", "75.26"):
        assert f"<td>{printed}" in page and printed in (tmp_path / "tables.md").read_text()


def test_the_page_is_self_contained(folder):
    page = (folder / "index.html").read_text()
    parsed = references(page)
    assert len(parsed.addresses) == len(list((folder / "figures").glob("*.png"))) == 7
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", page)


def test_the_page_has_every_table_and_figure_of_the_paper(folder):
    page = (folder / "index.html").read_text()
    headings = " ".join(re.findall("<h2>(.*?)</h2>", page))
    names = [f"Table {n}" for n in (1, 2, 3)] + [f"Figure {n}" for n in range(2, 8)]
    assert all(name in headings for name in names)


def test_studies_of_one_name_have_separate_figures_and_tables(tmp_path):
    studies = [samples.ablation(), samples.ablation(dataset="cifar100"), samples.ablation()]
    studies[1]["preset"] = "cifar100"
    report.write_study_report(studies, tmp_path)
    names = {path.name for path in (tmp_path / "figures").glob("figure_4*")}
    assert names == {
        "figure_4_ablation_quickstart.png",
        "figure_4_ablation_quickstart_2.png",
        "figure_4_ablation_cifar100.png",
    }
    assert (tmp_path / "tables.md").read_text().count("## Table 2") == 3


def test_earlier_figures_are_removed(tmp_path):
    report.write_study_report([samples.ablation()], tmp_path)
    report.write_study_report([], tmp_path)
    assert not list((tmp_path / "figures").iterdir())


def test_text_of_a_study_is_escaped():
    assert str(with_code("<b> `x < y`")) == "&lt;b&gt; <code>x &lt; y</code>"


# The command


def test_the_command_does_not_import_jax(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(samples.ablation()))
    program = (
        "import sys; from imta_jax.studies.__main__ import main; "
        f"code = main([{str(tmp_path / 'study.json')!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "sys.exit(code or 'jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found nothing"),
        ("{", "not valid JSON"),
        ("[1, 2]", "found a list: [1, 2]"),
        ('{"exits": 3}', "missing study, preset, environment, arms, seeds, rows; found exits"),
    ],
)
def test_a_file_that_is_not_a_study_is_rejected(tmp_path, capsys, content, message):
    path = tmp_path / "study.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "nobody"}, "variant 'nobody'"),
        ({"status": "perhaps"}, "seed 0: status .*'perhaps'"),
        ({"exits": []}, "seed 0: .* no exits"),
    ],
)
def test_an_invalid_row_is_named(change, message):
    study = samples.ablation()
    study["rows"][0] |= change
    with pytest.raises(ValueError, match=f"here.*{message}"):
        parse_study(study, "here")
