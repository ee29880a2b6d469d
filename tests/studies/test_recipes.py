"""The study of recipes: its variants, what they share, and its table and figure."""

import dataclasses

import numpy as np
import pytest
import study_samples as samples

from configs.studies import ablation, recipes
from imta_jax.report.style import format_signed
from imta_jax.studies import StudyConfig, study_variants
from imta_jax.studies.report.entries import collect_entries
from imta_jax.studies.report.parsing import parse_study
from imta_jax.studies.report.recipes import (
    figure_recipes,
    line_styles,
    recipes_table,
    schedules,
)
from imta_jax.studies.report.study_record import VariantRecord


def variants_of(config):
    return {variant.name: variant for variant in study_variants(StudyConfig.from_mapping(config))}


@pytest.fixture(scope="module")
def variants():
    return variants_of(recipes.get_config("cifar100,12+4,40+10"))


def test_variants_use_the_techniques_that_they_name(variants):
    phases = {name: variant.config.phase_one for name, variant in variants.items()}
    for name in ("plain", "dfs", "dfs_all", "boost_dfs", "mixed", "l2w"):
        assert phases[name].equilibrium == "off"
        assert variants[name].config.phase_two.total_epochs == 0
    assert [phases[n].equilibrium for n in ("ge_coarsest", "ge", "boost")] == [
        "coarsest",
        "all",
        "coarsest",
    ]
    assert [phases[n].detach for n in ("dfs", "dfs_all", "boost_dfs")] == [
        "coarsest",
        "all",
        "coarsest",
    ]
    boosted = {name for name, v in variants.items() if v.config.model.heads == "boosted"}
    assert {"boost", "boost_dfs", "boost_ofa"} <= boosted
    assert phases["l2w"].sample_weights == "learned"
    imta = variants["imta"].config
    assert (imta.phase_one.equilibrium, imta.phase_two.transfer) == ("all", "linear")
    assert imta.phase_two.alpha < 1 and variants["ge_isc"].config.phase_two.alpha == 1


def test_every_schedule_has_all_variants_and_its_own_baseline(variants):
    first = {name for name in variants if not name.endswith("_40_10")}
    assert {f"{name}_40_10" for name in first} == variants.keys() - first
    for name, variant in variants.items():
        epochs, against = ((40, 10), "plain_40_10") if name not in first else ((12, 4), "plain")
        config = variant.config
        assert config.phase_one.total_epochs == epochs[0]
        assert config.phase_two.total_epochs in (0, epochs[1])
        assert variant.against == against


def test_the_mixed_regime_takes_half_of_the_epochs_that_are_set(variants):
    assert variants["mixed"].config.phase_one.last_exit_epochs == 6
    assert variants["mixed_40_10"].config.phase_one.last_exit_epochs == 20
    config = recipes.get_config("quickstart")
    config.base.phase_one.total_epochs = 8
    assert variants_of(config)["mixed"].config.phase_one.last_exit_epochs == 4


def test_variants_of_phase_two_share_the_networks_of_phase_one(variants):
    keys = {name: variant.phase_one_key for name, variant in variants.items()}
    for start in ("plain", "ge"):
        assert len({keys[start], keys[f"{start}_ofa"], keys[f"{start}_longer"]}) == 1
    assert keys["imta"] == keys["ge"] and keys["boost_ofa"] == keys["boost"]
    phase_one_only = ("plain", "ge", "ge_coarsest", "dfs", "dfs_all", "boost", "mixed", "l2w")
    assert len({keys[name] for name in phase_one_only}) == len(phase_one_only)


def test_networks_are_those_of_the_ablation_of_the_same_schedule(variants):
    config = ablation.get_config("cifar100")
    config.base.phase_one.total_epochs, config.base.phase_two.total_epochs = 12, 4
    same = variants_of(config)
    assert same["none"].phase_one_key == variants["plain"].phase_one_key
    assert same["all"].phase_one_key == variants["imta"].phase_one_key


# The report.


@pytest.fixture(scope="module")
def study():
    arms = {
        "plain": samples.variant("plain", []),
        "boost": samples.variant("boosted", ["GE", "boost"]),
        "imta": samples.variant("IMTA", ["GE", "ISC", "OFA"]),
        "l2w": samples.variant("learned weights", ["L2W"]),
        "plain_9_1": samples.variant("plain, longer", []),
        "boost_9_1": samples.variant("boosted, longer", ["GE", "boost"]),
    }
    for name, arm in arms.items():
        arm["against"] = "plain_9_1" if name.endswith("_9_1") else "plain"
    rows = [
        samples.synthetic_row(name, seed, gain=0.5 * i, phase_two=name == "imta")
        for i, name in enumerate(arms)
        if name != "l2w"
        for seed in range(2)
    ]
    return samples.synthetic_study("recipes", arms, rows, dataset="cifar100", seeds=2)


def test_each_schedule_has_a_figure_and_a_table(study):
    entries = [e for e in collect_entries([parse_study(study)]) if "Recipes" in e.heading]
    assert [bool(e.image) for e in entries] == [True, False, True, False]
    assert len({e.name for e in entries if e.image}) == 2


def test_differences_are_paired_by_seed_within_a_schedule(study):
    record = parse_study(study)
    first, second = schedules(record)
    frame = recipes_table(record, second).frame
    top1 = (
        {row["arm"]: row["exits"][2]["top1"] for row in study["rows"] if row["seed"] == 0},
        {row["arm"]: row["exits"][2]["top1"] for row in study["rows"] if row["seed"] == 1},
    )
    paired = np.array([by_arm["boost_9_1"] - by_arm["plain_9_1"] for by_arm in top1])
    expected = f"{format_signed(paired.mean(), 2)} ± {paired.std(ddof=1):.2f}"
    assert frame["E-3 minus plain"].to_list() == ["", expected]
    assert frame["training time"].to_list() == ["", "1.00"]
    statuses = recipes_table(record, first).frame["finished seeds"].to_list()
    assert statuses == ["2 of 2", "2 of 2", "2 of 2", "not run"]


def test_the_figure_has_every_finished_variant_and_published_points_of_its_dataset(study):
    record = parse_study(study)
    axes = figure_recipes(record, schedules(record)[0]).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert labels[:3] == ["plain", "boosted", "IMTA"]
    assert any(label.startswith("BoostNet on MSDNet, published") for label in labels)
    lines = {line.get_label(): line.get_linestyle() for line in axes.lines}
    assert (lines["plain"], lines["IMTA"]) == ("-", "--")
    other = dataclasses.replace(record, dataset={"name": "fashion_mnist_small"})
    labels = figure_recipes(other, schedules(other)[0]).axes[0].get_legend_handles_labels()[1]
    assert not any("published" in label for label in labels)


def test_lines_of_all_variants_differ():
    variants = [VariantRecord(f"variant_{i}", "", "", frozenset({"GE"}), {}) for i in range(32)]
    styles = line_styles(variants, [i % 2 == 1 for i in range(32)])
    assert len(set(styles)) == 32
