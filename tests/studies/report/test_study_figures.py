"""The study report's figures."""

import numpy as np
import pytest
import study_samples as samples
from study_rows import legend_of, texts

from imta_jax.studies import report
from imta_jax.studies.report import paper_numbers as paper
from imta_jax.studies.report.parsing import parse_study
from imta_jax.studies.report.style import BASELINE, FULL


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
