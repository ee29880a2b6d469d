"""The evidence: tables and figures of made-up studies, whose rows `study_samples` draws."""

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
from imta_jax.studies.report.curves import arm_curves, curve_at, curve_gains
from imta_jax.studies.report.page import collect_exhibits, evidence_markdown, with_code
from imta_jax.studies.report.record import study_from
from imta_jax.studies.report.style import BASELINE, FULL
from imta_jax.studies.report.variant_tables import gains_at, nearly_best, ranked_settings

MARK = ("fashion_mnist_small (9,000 training", "phase I 5 epochs of batch 64", "seeds 0, 1, 2")


def record(study):
    return study_from(study)


def arm_of(study, name):
    return next(arm for arm in study.arms if arm.name == name)


def accuracies(study, name, key="top1"):
    """[seeds, exits] by hand, from the rows as they are written."""
    rows = [r for r in study["rows"] if r["arm"] == name and r["status"] == "done"]
    return np.array([[one[key] for one in row["exits"]] for row in rows])


def texts(figure):
    return [one.get_text() for one in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence") / "out"
    assert report.write_evidence(samples.all_studies(), folder) == folder / "index.html"
    return folder


# The paper's numbers


@pytest.mark.parametrize("printed", [52, 581, 137.3])
def test_table_one_has_the_printed_costs(printed):
    assert printed in [row.madds for row in paper.TABLE_ONE]


def test_the_full_method_gains_at_every_exit_of_tables_two_and_three():
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
def test_only_the_papers_own_datasets_are_known(name, known):
    assert paper.known_dataset(name) == known


def test_every_reading_says_where_it_is_from_and_rises_in_cost():
    for reading in paper.READINGS:
        costs = [cost for cost, _ in reading.points]
        assert reading.source and reading.uncertainty > 0 and costs == sorted(costs)


# Tables


def test_means_and_deviations_of_the_ablation_are_those_of_the_rows():
    study = samples.ablation()
    frame = report.ablation_table(record(study)).frame
    ours = frame[frame["source"].str.startswith("ours, fashion")]
    values = accuracies(study, "GE")
    both = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
    expected = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in both]
    assert ours.iloc[1][["E-1", "E-2", "E-3", "E-4", "E-5"]].to_list() == expected


def test_differences_are_paired_by_seed_and_leave_failed_seeds_out():
    study = samples.ablation()
    frame = report.ablation_table(record(study)).frame
    isc = frame[(frame["ISC"] == "✓") & (frame["GE"] == "-")]
    paired = accuracies(study, "ISC") - accuracies(study, "none")[:2]
    expected = f"{format_signed(paired[:, 0].mean(), 2)} ± {paired[:, 0].std(ddof=1):.2f}"
    assert isc[isc["source"].str.contains("baseline")]["E-1"].item() == expected
    assert "2 of 3, 1 failed" in isc["seeds done"].to_list()


def test_an_arm_without_rows_is_visible_and_empty():
    frame = report.ablation_table(record(samples.ablation())).frame
    ofa = frame[(frame["OFA"] == "✓") & (frame["GE"] == "-")]
    ours = ofa[ofa["source"].str.startswith("ours, fashion")]
    assert ours["seeds done"].to_list() == ["not run"]
    assert not "".join(ours[["E-1", "E-5"]].to_numpy().ravel())


def test_a_failed_run_is_told_with_its_reason():
    table = report.ablation_table(record(samples.ablation()))
    assert "Failed: ISC, seed 2: loss not finite at step 12" in table.notes
    alone = samples.ablation(fail=[("GE", seed) for seed in range(3)])
    frame = report.ablation_table(record(alone)).frame
    assert "failed" in frame["seeds done"].to_list()


@pytest.mark.parametrize(("dataset", "number"), [("cifar100", 2), ("imagenet", 3), ("other", 2)])
def test_the_papers_rows_stand_beside_ours_with_their_dataset(dataset, number):
    table = report.ablation_table(record(samples.ablation(dataset=dataset)))
    printed = paper.ABLATIONS[number - 2]
    first = table.frame.iloc[0]
    assert f"Table {number}" in table.heading
    assert first["source"] == f"paper, {paper.DATASET_NAMES[printed.dataset]}"
    assert first["E-5"] == f"{printed.top1[frozenset()][4]:.2f}"
    assert any("cannot" in note and "compared" in note for note in table.notes) == (
        dataset == "other"
    )


def test_table_one_has_every_printed_row_and_ours_beside_it():
    study = samples.exits(dataset="cifar100")
    frame = report.classifiers_table(record(study)).frame.set_index("model")
    assert len(frame) == len(paper.TABLE_ONE)
    values = accuracies(study, "all")[:, 6]
    row = frame.loc["Ours-Exit7"]
    assert row["paper: top-1"] == "75.96"
    assert row["ours: top-1"] == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert frame.loc["Hydra-Res-d2", "ours: seeds done"] == "1 of 3"
    # One seed has no standard deviation.
    assert re.fullmatch(r"\d\d\.\d\d", frame.loc["Hydra-Res-d2", "ours: top-1"])
    assert frame.loc["Hydra-Res-d9", "ours: seeds done"] == "not run"


def test_table_one_says_where_our_network_has_fewer_exits():
    study = samples.exits()
    study["rows"] = [samples.made_up_row(name, 0, exits=5) for name in ("plain", "all")]
    frame = report.classifiers_table(record(study)).frame.set_index("model")
    assert frame.loc["MSDNet-Exit5", "ours: seeds done"] == "1 of 3"
    assert frame.loc["MSDNet-Exit6", "ours: seeds done"] == "no such exit"


def test_variants_of_one_technique_are_told_apart():
    study = samples.ablation()
    study["arms"]["coarse"] = samples.arm("GE, coarsest map", ["GE"])
    sources = report.ablation_table(record(study)).frame["source"].to_list()
    assert "ours, fashion_mnist_small (GE, coarsest map)" in sources
    assert "ours, fashion_mnist_small (GE)" in sources


def test_an_arm_that_the_paper_lacks_gets_its_own_rows_in_table_one():
    study = samples.exits()
    study["arms"]["GE"] = samples.arm("only GE", ["GE"], "cifar_7_exits")
    study["rows"].append(samples.made_up_row("GE", 0, exits=7))
    study["arms"]["later"] = samples.arm("later", ["OFA"], "cifar_7_exits")
    frame = report.classifiers_table(record(study)).frame
    assert "only GE-Exit7" in frame["model"].to_list()
    assert frame[frame["model"] == "later"]["ours: seeds done"].item() == "not run"


def test_differences_are_never_taken_to_another_network():
    study = record(samples.budget())
    frame = report.budget_table(study).frame.set_index("arm")
    assert frame.loc["resnet_20", "to baseline"] == ""
    assert frame.loc["Ours, 8 exits", "to baseline"].startswith("+")
    assert study.baseline_of(arm_of(study, "all_8")).name == "plain_8"


def test_settings_are_ranked_by_validation_images_alone():
    study = samples.distillation()
    ranked = [arm.name for arm in ranked_settings(record(study))]
    means = [accuracies(study, name, "validation_top1").mean() for name in ranked]
    assert means == sorted(means, reverse=True)
    deviation = accuracies(study, ranked[0], "validation_top1").mean(axis=1).std(ddof=1)
    near = sum(mean >= means[0] - deviation for mean in means)
    assert nearly_best(record(study)).startswith(f"{near} of {len(ranked)} settings")
    frame = report.distillation_table(record(study)).frame
    assert frame.iloc[-1]["seeds done"] == "not run" and frame.iloc[-1]["rank"] == ""


def test_one_seed_leaves_no_deviation_to_compare_settings_by():
    assert "has one seed" in nearly_best(record(samples.distillation(seeds=1)))


def test_the_equilibrium_table_has_both_sides_of_equation_three():
    study = samples.equilibrium()
    frame = report.equilibrium_table(record(study)).frame
    measured = [row["gradient_variance"] for row in study["rows"] if row["arm"] == "off"]
    rows = frame[frame["arm"] == "without GE"].set_index("row")
    total = np.mean([one["stages"][0] for one in measured])
    losses = np.mean([sum(one["losses"][0]) for one in measured])
    assert rows.loc["gradient variance", "E-1"] == f"{total:.3g}"
    assert rows.loc["sum of the losses' variances", "E-1"] == f"{losses:.3g}"


def test_the_mark_line_is_on_every_table():
    tables = [e.table for e in collect_exhibits([record(s) for s in samples.all_studies()])]
    ours = [table for table in tables if table and "not run; " not in table.mark]
    assert len(ours) == 5
    assert all(fact in table.markdown() for table in ours for fact in (*MARK, "1 x cpu"))


# Curves


def test_a_budget_curve_meets_its_own_points_and_ends_where_they_end():
    row = samples.made_up_row("all", 0)
    costs = np.array([point["mean_macs"] for point in row["budget_curve"]])
    top1 = [point["top1"] for point in row["budget_curve"]]
    np.testing.assert_allclose(curve_at(row, costs), top1)
    assert np.isnan(curve_at(row, np.array([0.5 * costs[0], 2 * costs[-1]]))).all()


def test_gains_over_the_baseline_are_paired_at_equal_cost():
    study = record(samples.ablation())
    costs, gains = curve_gains(study, arm_of(study, "GE"))
    own, plain = (arm_curves(study, arm_of(study, name)) for name in ("GE", "none"))
    np.testing.assert_allclose(costs, own[0])
    np.testing.assert_allclose(gains, own[1] - plain[1])
    assert not len(curve_gains(study, arm_of(study, "none"))[0])


def test_a_gain_at_a_cost_is_that_of_the_seeds_curves_there():
    study = samples.budget()
    rows = {name: [r for r in study["rows"] if r["arm"] == name] for name in ("all_8", "plain_8")}
    there = [[curve_at(r, np.array([1e8]))[0] for r in rows[name]] for name in rows]
    gains = gains_at(record(study), arm_of(record(study), "all_8"), 1e8)
    # Between points of the common grid both curves are drawn straight.
    np.testing.assert_allclose(gains, np.subtract(*there), atol=0.1)
    frame = report.budget_table(record(study)).frame.set_index("arm")
    assert frame.loc["Ours, 8 exits", "gain at 100 M"].startswith(format_signed(gains.mean(), 2))
    assert frame.loc["Ours, 4 exits", "gain at 100 M"] == ""


# Figures


def test_the_budget_figure_has_a_curve_per_network_and_a_point_per_single_exit():
    axes = report.figure_study_budget(record(samples.budget())).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 10]
    assert sorted(line.get_color() for line in curves) == 3 * [FULL] + 3 * [BASELINE]
    legend = legend_of(axes)
    assert {"ResNet", "DenseNet"} <= set(legend) and not [t for t in legend if "read off" in t]
    resnet = next(line for line in axes.lines if line.get_label() == "ResNet")
    assert len(resnet.get_xdata()) == 3


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet"])
def test_readings_are_drawn_only_on_their_own_dataset(dataset):
    axes = report.figure_study_budget(record(samples.budget(dataset=dataset, seeds=1))).axes[0]
    drawn = [text for text in legend_of(axes) if "read off" in text]
    assert len(drawn) == len(paper.readings_of(dataset))
    assert all(any(r.source in text for text in drawn) for r in paper.readings_of(dataset))


def test_the_ablation_figure_has_each_arm_and_its_gain():
    above, below = report.figure_ablation(record(samples.ablation())).axes
    assert {"plain", "GE", "OFA (not run)", "GE + ISC + OFA"} < set(legend_of(above))
    gains = [line for line in below.lines if len(line.get_xdata()) > 10]
    assert len(gains) == 3  # of GE, ISC and all three


def test_the_validation_figure_has_two_panels_per_network():
    figure = report.figure_validation(record(samples.equilibrium()))
    assert len(figure.axes) == 2 and [len(axes.lines) for axes in figure.axes] == [3, 3]
    figure = report.figure_validation(record(samples.budget()))
    assert len(figure.axes) == 6 and all(len(axes.lines) == 2 for axes in figure.axes)


def test_the_rank_figure_shows_both_clouds_the_identity_and_the_correlations():
    study = samples.ablation()
    axes = report.figure_ranks(record(study)).axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [400, 400, 2]
    values = [row["rank_correlation"] for row in study["rows"] if row["arm"] == "none"]
    text = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert text in legend_of(axes)[0]


def test_the_distillation_figure_has_a_cell_per_setting_and_names_the_unrun_one():
    figure = report.figure_distillation(record(samples.distillation()))
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.images[0].get_array().shape for axes in panels] == [(3, 3), (3, 3)]
    assert "teacher phase_one" in panels[1].get_title(loc="left")
    assert "not\nrun" in texts(figure) and any("without OFA" in text for text in texts(figure))


def test_the_variance_figure_is_logarithmic_with_both_sides_per_arm():
    axes = report.figure_gradient_variance(record(samples.equilibrium())).axes[0]
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
def test_every_figure_carries_the_mark_line(draw, study):
    beneath = draw(record(study)).get_supxlabel().replace("\n", " ")
    assert "fashion_mnist_small (9,000 training" in beneath and "1 x cpu" in beneath


@pytest.mark.parametrize("change", ["no rows", "all failed", "one row"])
@pytest.mark.parametrize("study", samples.all_studies(), ids=lambda study: study["study"])
def test_half_done_studies_are_drawn_too(study, change):
    rows = {
        "no rows": [],
        "all failed": [samples.failed_row(name, 0) for name in study["arms"]],
        "one row": study["rows"][:1],
    }[change]
    dataset = study["dataset"] if change == "one row" else None
    exhibits = collect_exhibits([record({**study, "rows": rows, "dataset": dataset})])
    markdown = evidence_markdown(exhibits)
    assert "not run" in markdown
    if change == "all failed":
        assert "loss not finite" in markdown


# The folder


def test_missing_studies_are_told_with_the_command_that_runs_them(tmp_path):
    page = report.write_evidence([], tmp_path).read_text()
    for study in ("exits", "ablation", "budget", "equilibrium", "distillation"):
        assert f"No run of the study <code>{study}</code>" in page
        assert f"--config=configs/studies/{study}.py" in page
    for printed in ("75.96", "73.45", "72.43", "75.26"):
        assert f"<td>{printed}" in page and printed in (tmp_path / "tables.md").read_text()


def test_the_page_refers_to_nothing_outside_itself(folder):
    page = (folder / "index.html").read_text()
    parsed = references(page)
    assert len(parsed.addresses) == len(list((folder / "figures").glob("*.png"))) == 7
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"https?://|url\(|@import", page)


def test_every_table_and_figure_of_the_paper_has_a_place(folder):
    page = (folder / "index.html").read_text()
    headings = " ".join(re.findall("<h2>(.*?)</h2>", page))
    names = [f"Table {n}" for n in (1, 2, 3)] + [f"Figure {n}" for n in range(2, 8)]
    assert all(name in headings for name in names)


def test_studies_of_one_name_each_get_their_own_and_none_is_overwritten(tmp_path):
    studies = [samples.ablation(), samples.ablation(dataset="cifar100"), samples.ablation()]
    studies[1]["preset"] = "cifar100"
    report.write_evidence(studies, tmp_path)
    names = {path.name for path in (tmp_path / "figures").glob("figure_4*")}
    assert names == {
        "figure_4_ablation_quickstart.png",
        "figure_4_ablation_quickstart_2.png",
        "figure_4_ablation_cifar100.png",
    }
    assert (tmp_path / "tables.md").read_text().count("## Table 2") == 3


def test_figures_of_an_earlier_call_do_not_stay(tmp_path):
    report.write_evidence([samples.ablation()], tmp_path)
    report.write_evidence([], tmp_path)
    assert not list((tmp_path / "figures").iterdir())


def test_texts_of_a_study_cannot_become_markup():
    assert str(with_code("<b> `x < y`")) == "&lt;b&gt; <code>x &lt; y</code>"


# The command


def test_the_command_writes_the_evidence_without_jax(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(samples.ablation()))
    program = (
        "import sys; from imta_jax.studies.__main__ import main; "
        f"code = main([{str(tmp_path / 'study.json')!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "sys.exit(code or 'jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "found nothing"),
        ("{", "not valid JSON"),
        ("[1, 2]", "expected an object, found a list"),
        ('{"exits": 3}', "it has no study, preset, environment, arms, seeds, rows; found exits"),
    ],
)
def test_what_is_no_study_is_refused_with_what_was_found(tmp_path, capsys, content, told):
    path = tmp_path / "study.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert told in error and str(path) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arm": "nobody"}, "no such arm"),
        ({"status": "perhaps"}, "expected status done or failed, found 'perhaps'"),
        ({"exits": []}, "it is done, but has no exits"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(change, told):
    study = samples.ablation()
    study["rows"][0] |= change
    with pytest.raises(ValueError, match=told):
        study_from(study, "here")
