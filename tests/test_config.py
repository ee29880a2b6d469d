"""Config dataclasses: types, ranges, defaults and the values of the config files."""

import dataclasses
import importlib
import json

import pytest
from ml_collections import ConfigDict

from imta_jax.config import DataConfig, PhaseOneConfig, RunConfig
from imta_jax.runtime.config_fields import Section, number
from imta_jax.studies.variants import key_fields

FILES = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "quickstart")


def run_config(name="quickstart", preset="paper") -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(preset)


def as_json(values):
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("preset", ["paper", "published", "baseline"])
@pytest.mark.parametrize("name", FILES)
def test_parsing_keeps_every_value_of_a_config_file(name, preset):
    config = run_config(name, preset)
    assert as_json(RunConfig.from_mapping(config).to_dict()) == as_json(config.to_dict())


def test_parsing_json_gives_the_same_config_as_parsing_the_file():
    config = RunConfig.from_mapping(run_config())
    assert RunConfig.from_mapping(as_json(config.to_dict())) == config
    assert RunConfig.from_mapping(config) is config


def test_defaults_equal_those_of_the_config_files():
    paper = RunConfig.from_mapping(run_config("cifar100"))
    for section in (paper.data, paper.phase_one, paper.phase_two, paper.evaluation, paper.log):
        for field in dataclasses.fields(section):
            if field.default is not dataclasses.MISSING:
                assert getattr(section, field.name) == field.default, field.name


REJECTED = [
    ("seed", -1, r"config\.seed.*at least 0.*-1"),
    ("seed", 2**63, r"config\.seed.*at most 2147483647.*9223372036854775808"),
    ("data.validation_seed", 2**31, r"validation_seed.*at most 2147483647.*2147483648"),
    ("data.source", " ", r"config\.data\.source"),
    ("data.max_undecodable", 1.5, r"data\.max_undecodable.*at least 0.*at most 1.*1\.5"),
    ("data.preprocessing", "crop", r"data\.preprocessing 'crop'.*padded_crop"),
    ("data.memory_limit_gb", 0.0, r"memory_limit_gb.*above 0.*0\.0"),
    ("data.service", "host:1", r"data\.service.*host:1"),
    ("data.flip", "yes", r"data\.flip.*True or False.*yes"),
    ("model.growth_factors", 3, r"model\.growth_factors.*tuple.*3"),
    ("model.num_exits", 2.5, r"model\.num_exits.*integer.*2\.5"),
    ("phase_one.total_epochs", 0, r"phase_one\.total_epochs.*at least 1.*0"),
    ("phase_one.batch_size", True, r"phase_one\.batch_size.*integer.*True"),
    ("phase_one.equilibrium", "al", r"phase_one\.equilibrium 'al'.*all"),
    (
        *("phase_one.learning_rate_multipliers", ("^heads", 0.1)),
        r"entry of config\.phase_one\.learning_rate_multipliers.*tuple.*\(\('\^heads', 0\.1\),\)",
    ),
    ("phase_two.momentum", 1.0, r"phase_two\.momentum.*below 1.*1\.0"),
    ("phase_two.temperature", float("nan"), r"phase_two\.temperature.*above 0.*nan"),
    ("phase_one.learning_rate", float("inf"), r"phase_one\.learning_rate.*finite.*inf"),
    ("evaluation.quotas", (0.5, float("inf")), r"evaluation\.quotas.*finite.*inf"),
    ("phase_two.learning_rate_drops", (0.5, 2), r"learning_rate_drops.*at most 1.*2"),
    ("phase_one.learning_rate_drops", None, r"learning_rate_drops.*tuple.*None"),
    ("phase_one.learning_rate_drops", (0.5, None), r"learning_rate_drops.*number.*None"),
    ("evaluation.reported_budgets", ("a",), r"reported_budgets.*number.*'a'"),
    ("evaluation.reported_budgets", "0.5", r"reported_budgets.*tuple.*0\.5"),
    ("evaluation.quotas", ((1.0,),), r"quotas.*number.*\(1\.0,\)"),
    ("model.growth_factors", (1, 2.5), r"growth_factors.*integer.*2\.5"),
    ("log.profile_steps", (1, "2"), r"profile_steps.*integer.*'2'"),
    ("evaluation.quotas", (), r"evaluation\.quotas"),
    ("evaluation.checkpoint", "lst", r"evaluation\.checkpoint 'lst'.*last"),
    ("mesh.parameter_shards", 0, r"mesh\.parameter_shards.*at least 1.*0"),
    ("checkpoint.on_write_error", "stp", r"on_write_error 'stp'.*stop"),
    ("log.profile_steps", (5, 2), r"log\.profile_steps.*\(5, 2\)"),
    ("log.profile_steps", (5,), r"log\.profile_steps.*2 entries.*\(5,\)"),
]


@pytest.mark.parametrize(("field", "value", "message"), REJECTED)
def test_an_invalid_value_raises_with_field_value_and_valid_values(field, value, message):
    config = run_config().to_dict()
    *parents, last = field.split(".")
    part = config
    for name in parents:
        part = part[name]
    part[last] = value
    with pytest.raises(ValueError, match=message):
        RunConfig.from_mapping(config)


def test_an_unknown_field_is_rejected_with_the_closest_valid_name_first():
    config = run_config().to_dict()
    config["phase_one"]["total_epoch"] = 3
    with pytest.raises(ValueError, match=r"config\.phase_one 'total_epoch'.*: total_epochs,"):
        RunConfig.from_mapping(config)


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(ValueError, match=r"config\.data\.validation_examples"):
        DataConfig.from_mapping({"source": "cifar10"})


def test_values_are_converted_to_the_declared_types():
    phase = PhaseOneConfig(total_epochs=1, batch_size=1, learning_rate=1, learning_rate_drops=[0])
    assert isinstance(phase.learning_rate, float)
    assert phase.learning_rate_drops == (0.0,)


def test_configs_are_frozen_and_hashable():
    config = RunConfig.from_mapping(run_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert hash(config) == hash(RunConfig.from_mapping(run_config()))


def test_bounds_apply_to_every_entry_of_a_tuple():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Example(Section):
        sizes: tuple[int, ...] = number((1,), at_least=1)

    assert Example(sizes=(1, 2)).sizes == (1, 2)
    with pytest.raises(ValueError, match=r"config\.sizes.*at least 1.*\(1, 0\)"):
        Example(sizes=(1, 0))


def test_the_earlier_name_of_held_out_splits_is_read_as_the_present_one():
    fields = {"source": "images.npz", "validation_examples": 4}
    earlier = DataConfig(**fields, validation_split="carve", test_split="carve")
    assert earlier == DataConfig(**fields, validation_split="hold_out", test_split="hold_out")
    assert key_fields(earlier)["validation_split"] == "carve"
