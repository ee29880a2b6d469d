"""Sweeps: their settings, the command line's form, a resumable run and its table."""

import importlib
import re

import numpy as np
import pytest
import tiny_run
from absl import flags
from ml_collections import config_flags

from imta_jax.errors import InputError
from imta_jax.runtime.free_options import ConfigParser
from imta_jax.runtime.registry import HEADS
from imta_jax.studies import run_study, runner
from imta_jax.studies.config import StudyConfig
from imta_jax.studies.report import parse_study, sweep_table
from imta_jax.studies.sweep import SweepConfig, setting_label, setting_name
from imta_jax.studies.variants import study_variants
from imta_jax.techniques import IndependentHeads

FIELDS = {"phase_one": {"learning_rate": (0.1, 0.2), "momentum": (0.5, 0.9)}}
RANGES = {
    "phase_one": {"learning_rate": ("log", 0.001, 1.0), "batch_size": ("integer", 16, 20)},
    "phase_two": {"alpha": ("uniform", 0.2, 0.4), "learning_rate": (0.1, 0.2)},
}


def settings(fields, **changes):
    return list(SweepConfig(fields=fields, **changes).settings().values())


def test_a_grid_has_all_combinations():
    assert settings(FIELDS) == [
        {"phase_one.learning_rate": rate, "phase_one.momentum": momentum}
        for rate in (0.1, 0.2)
        for momentum in (0.5, 0.9)
    ]


def test_random_values_lie_in_their_ranges():
    drawn = settings(RANGES, mode="random", samples=60)
    assert len(drawn) == 60
    columns = {name: [setting[name] for setting in drawn] for name in drawn[0]}
    assert set(columns["phase_one.batch_size"]) == {16, 17, 18, 19, 20}
    assert set(columns["phase_two.learning_rate"]) == {0.1, 0.2}
    assert 0.2 <= min(columns["phase_two.alpha"]) < max(columns["phase_two.alpha"]) <= 0.4
    rates = np.array(columns["phase_one.learning_rate"])
    assert rates.min() >= 0.001 and rates.max() <= 1
    assert 0.25 < (rates < 10**-1.5).mean() < 0.75  # uniform on a logarithmic scale


def test_random_settings_are_reproducible_and_stay_when_more_are_drawn():
    few, many = (settings(RANGES, mode="random", samples=n) for n in (5, 9))
    assert many[:5] == few
    assert settings(RANGES, mode="random", samples=5, seed=1) != few
    alone = settings({"phase_two": {"alpha": ("uniform", 0.2, 0.4)}}, mode="random", samples=5)
    assert [s["phase_two.alpha"] for s in alone] == [s["phase_two.alpha"] for s in few]


def test_random_settings_of_few_values_are_distinct():
    assert len(settings(FIELDS, mode="random", samples=30)) == 4


def test_names_are_file_names_and_differ():
    setting = {"phase_one.learning_rate": 0.1, "phase_two.learning_rate": 0.2, "a.b": "x y/z"}
    assert (
        setting_name(setting) == "phase_one.learning_rate_0.1__phase_two.learning_rate_0.2__b_x-y-z"
    )
    assert setting_label({"phase_one.alpha": 0.5, "seed": 3}) == "alpha 0.5, seed 3"
    long = {f"section.field_{i}": float(i) for i in range(20)}
    assert len(setting_name(long)) <= 100
    assert setting_name(long) != setting_name(long | {"section.field_3": 4.5})


@pytest.mark.parametrize(
    "fields, changes, message",
    [
        ({}, {}, r"sweep\.fields is empty"),
        ({"seed": 3}, {}, r"sweep\.fields\.seed.*tuple.*3"),
        ({"seed": ()}, {}, r"sweep\.fields\.seed.*\(\)"),
        ({"seed": (1, 1)}, {}, r"sweep\.fields\.seed.*different.*\(1, 1\)"),
        ({"a": {"b": ("log", 0.1, 1)}}, {}, r"fields\.a\.b.*sweep\.mode=\"random\""),
        ({"a": ("log", 0, 1)}, {"mode": "random"}, r"fields\.a.*low above 0.*'log', 0, 1"),
        ({"a": ("uniform", 2, 1)}, {"mode": "random"}, r"fields\.a.*low below high"),
        ({"a": ("integer", 1, 2.5)}, {"mode": "random"}, r"fields\.a.*integers"),
        ({"a": tuple(range(200)), "b": tuple(range(200))}, {}, r"40,000 combinations"),
    ],
)
def test_fields_without_a_meaning_are_rejected(fields, changes, message):
    with pytest.raises(InputError, match=message):
        settings(fields, **changes)


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_the_command_line_sets_values_and_adds_fields(monkeypatch):
    overrides = [
        "--config.sweep.fields.phase_one.learning_rate=('log', 0.01, 0.5)",
        "--config.sweep.fields.phase_two.alpha=(0.1, 0.9)",
        "--config.sweep.fields.model.options.width=(4, 8)",
        "--config.sweep.mode=random",
        "--config.sweep.samples=3",
    ]
    arguments = ["launch.py", f"--config={tiny_run.ROOT}/configs/studies/sweep.py:quickstart"]
    monkeypatch.setattr("sys.argv", arguments + overrides)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values["config"].parser = ConfigParser(values["config"].parser)
    values(arguments + overrides)
    study = StudyConfig.from_mapping(holder.value)
    assert len(study.chosen) == 3 and study.baseline == study.chosen[0]
    for variant in study.variants.values():
        assert variant.overrides.keys() == {
            "phase_one.learning_rate",
            "phase_two.alpha",
            "model.options.width",
        }


def test_an_unknown_field_is_named():
    config = importlib.import_module("configs.studies.sweep").get_config("quickstart")
    config.sweep.fields.phase_one.learning_rat = (0.1,)
    with pytest.raises(ValueError, match=r"phase_one\.learning_rat.*first: learning_rate"):
        study_variants(StudyConfig.from_mapping(config))


def tiny_sweep(source, alphas):
    config = importlib.import_module("configs.studies.sweep").get_config("quickstart")
    with config.unlocked():
        config.base = tiny_run.tiny_config(
            source, phase_one__total_epochs=1, phase_two__total_epochs=1
        )
        config.sweep.fields = {"phase_two": {"alpha": alphas}}
    return config


def test_an_option_that_a_component_does_not_read_stops_a_new_sweep(source, tmp_path, monkeypatch):
    def make_heads(options, *, feature_widths, num_classes, rngs):
        return IndependentHeads(feature_widths, num_classes, rngs=rngs)

    monkeypatch.setitem(HEADS._components, "own_heads", make_heads)
    config = tiny_sweep(source, (0.1,))
    with config.unlocked():
        config.base.model.heads = "own_heads"
        config.base.phase_two.start = "fresh"
        config.sweep.fields = {"model": {"heads_options": {"rte": (1, 2)}}}
    with pytest.raises(InputError, match=r"config\.model\.heads 'own_heads'.*no option 'rte'"):
        run_study(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("compilation_cache")
def test_a_sweep_resumes_and_has_one_ranked_table(source, tmp_path, monkeypatch):
    record = run_study(tiny_sweep(source, (0.1, 0.9)), tmp_path)
    assert [row["arm"] for row in record["rows"]] == ["alpha_0.1", "alpha_0.9"]
    monkeypatch.setattr(runner._StudyRunner, "_run_group", None)  # would train
    again = run_study(tiny_sweep(source, (0.1, 0.9)), tmp_path)
    assert again["rows"] == record["rows"]
    frame = sweep_table(parse_study(record, "sweep")).frame
    assert list(frame.columns[:3]) == ["rank", "alpha", "finished seeds"]
    assert sorted(frame["alpha"]) == ["0.1", "0.9"] and list(frame["rank"]) == ["1", "2"]
    validation = frame["validation, mean of exits"].astype(float)
    assert validation[0] >= validation[1]
    tables = (tmp_path / "report" / "tables.md").read_text()
    assert re.search(r"rank\s*\|\s*alpha\s*\|", tables)
