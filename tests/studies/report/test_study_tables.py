"""The study report's tables."""

import re

import numpy as np
import pytest
import study_samples as samples
from study_rows import accuracies, variant_of

from imta_jax.report.style import format_signed
from imta_jax.studies import report
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.entries import collect_entries
from imta_jax.studies.report.parsing import parse_study
from imta_jax.studies.report.study_tables import nearly_best, ranked_settings

PROVENANCE = (
    "fashion_mnist_small (9,000 training",
    "phase I: 5 epochs (batch size 64)",
    "seeds 0, 1, 2",
)


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
    total = np.mean([result["stages"][0] for result in results])
    losses = np.mean([sum(result["losses"][0]) for result in results])
    assert rows.loc["gradient variance", "E-1"] == f"{total:.3g}"
    assert rows.loc["sum of the losses' variances", "E-1"] == f"{losses:.3g}"


def test_every_table_has_the_provenance_line():
    entries = collect_entries([parse_study(study) for study in samples.all_studies()])
    tables = [entry.table for entry in entries if entry.table]
    ours = [table for table in tables if "not run; " not in table.provenance]
    assert len(ours) == 5
    assert all(part in table.markdown() for table in ours for part in (*PROVENANCE, "1 x cpu"))
