"""Config files and presets pass all checks; errors on the command line name the valid values."""

import functools
import importlib
import re
import subprocess
import sys

import forked
import jax
import pytest
import tiny_run
from abstract_networks import ConstantRngs
from flax import nnx

from imta_jax.config import HeadsConfig, ModelConfig, RunConfig
from imta_jax.models import (
    NETWORK_PRESETS,
    MultiExitClassifier,
    build_classifier,
    with_collaborative_heads,
)
from imta_jax.training import check_training_config

NAMES = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "quickstart")
METHODS = ("paper", "published", "baseline")
PRESETS = [(name, preset) for name in NAMES for preset in METHODS]
PRESETS += [(name, f"{m},short") for name in ("cifar10", "cifar100") for m in METHODS]
CIFAR = ("cifar10", "cifar100")


def get_config(name, *preset):
    return importlib.import_module(f"configs.{name}").get_config(*preset)


def test_every_config_file_is_listed_here():
    actual = {path.stem for path in (tiny_run.ROOT / "configs").glob("*.py")}
    assert actual == {*NAMES, "common", "phases"}


@functools.cache
def exits_built(model: ModelConfig, heads: HeadsConfig) -> int:
    """Number of exits of a config's phase-II network."""
    classes = {"num_classes": tiny_run.INFO.num_classes, "rngs": ConstantRngs(0)}

    def phase_two() -> MultiExitClassifier:
        classifier = build_classifier(model, image_shape=tiny_run.INFO.image_shape, **classes)
        return with_collaborative_heads(classifier, heads, **classes)

    return nnx.eval_shape(phase_two).num_exits


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_passes_the_checks_and_builds(name, preset):
    assert len(jax.devices()) == 8
    config = RunConfig.from_mapping(get_config(name, preset))
    check_training_config(config)
    assert exits_built(config.model, config.heads) >= 4


# Values of the method presets.

PAPER = {
    "model.initialization": "he_normal",
    "phase_one.equilibrium": "all",
    "phase_one.nesterov": True,
    "phase_two.nesterov": True,
    "phase_two.transfer": "linear",
    "phase_two.stop_gradient": True,
    "phase_two.start": "phase_one",
    "phase_two.teacher": "own_last_exit",
    "phase_two.reduction": "batch",
    "phase_two.last_exit": "mixed",
    "phase_two.backbone_statistics": "frozen",
}
PUBLISHED = {
    "model.initialization": "pytorch",
    "phase_one.equilibrium": "coarsest",
    "phase_one.nesterov": False,
    "phase_two.nesterov": False,
    "phase_two.transfer": "linear",
    "phase_two.stop_gradient": False,
    "phase_two.start": "fresh",
    "phase_two.teacher": "phase_one_last_exit",
    "phase_two.reduction": "elements",
    "phase_two.last_exit": "cross_entropy",
    "phase_two.backbone_statistics": "moving",
    "phase_two.temperature_squared": True,
}


def at(config, dotted):
    for field in dotted.split("."):
        config = config[field]
    return config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("preset", "values"), [("paper", PAPER), ("published", PUBLISHED)])
def test_method_presets_have_the_values_of_the_table(name, preset, values):
    config = get_config(name, preset)
    assert {field: at(config, field) for field in values} == values
    for phase in (config.phase_one, config.phase_two):
        assert (phase.momentum, phase.weight_decay, phase.drop_factor) == (0.9, 1e-4, 0.1)
        assert phase.learning_rate == 0.1


@pytest.mark.parametrize("name", NAMES)
def test_paper_is_the_default_and_baseline_disables_the_techniques(name):
    assert get_config(name).to_dict() == get_config(name, "paper").to_dict()
    baseline = get_config(name, "baseline")
    assert baseline.phase_one.equilibrium == "off"
    assert baseline.phase_two.total_epochs == 0


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_follows_section_4_1(name):
    config = get_config(name)
    for phase, epochs in ((config.phase_one, 300), (config.phase_two, 180)):
        assert (phase.total_epochs, phase.batch_size) == (epochs, 64)
        assert phase.learning_rate_drops == (0.5, 0.75)
    assert config.data.validation_examples == 5000
    assert config.model.preset == "cifar_7_exits"
    short = get_config(name, "published,short")
    assert (short.phase_one.total_epochs, short.phase_two.total_epochs) == (30, 18)


def test_imagenet_follows_section_4_2():
    config = get_config("imagenet")
    for phase in (config.phase_one, config.phase_two):
        assert (phase.total_epochs, phase.batch_size) == (90, 256)
        assert [drop * 90 for drop in phase.learning_rate_drops] == pytest.approx([30, 60])
    assert config.data.validation_examples == 50000


def test_imagenet_presets_place_the_first_exit():
    for preset, first in (("paper", 7), ("published", 4)):
        network = NETWORK_PRESETS[get_config("imagenet", preset).model.preset]
        assert (network["base"], network["step"], network["num_exits"]) == (first, 4, 5)


# Invalid input.


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_preset_raises_with_the_valid_ones(name):
    with pytest.raises(ValueError, match=r"preset 'publishd'.*: published, ") as e:
        get_config(name, "publishd")
    assert all(preset in str(e.value) for preset in METHODS)
    assert ("short" in str(e.value)) == (name in CIFAR)
    with pytest.raises(ValueError, match="'shrt'"):
        get_config(name, "paper,shrt")


def test_a_config_is_locked():
    config = get_config("quickstart")
    with pytest.raises((AttributeError, KeyError), match="total_epochs"):
        config.phase_one.total_epoch = 3


def python(*arguments):
    """The output of Python in the repository root, which must exit with status 0."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tiny_run.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_configs_do_not_import_jax_or_tensorflow():
    loaded = "; ".join(f"import configs.{name}; configs.{name}.get_config()" for name in NAMES)
    forbidden = "{'imta_jax', 'jax', 'flax', 'tensorflow', 'orbax'}"
    actual = f"import sys; {loaded}; print(sorted({forbidden} & sys.modules.keys()))"
    assert python("-c", actual) == "[]"


QUICKSTART = "--config=configs/quickstart.py"
INVALID = {
    (f"{QUICKSTART}:publishd",): r"preset 'publishd'.*: published, ",
    (QUICKSTART, "--config.phase_one.total_epoch=3"): (
        r"config\.phase_one 'total_epoch'.*: total_epochs, .*batch_size"
    ),
    ("--config", "configs/quickstart.py", "--config.phas_one.seed", "3"): (
        r"config 'phas_one'.*: phase_one, .*data"
    ),
    (QUICKSTART, "--noconfig.data.flp"): (r"config\.data 'flp'.*: flip, .*source"),
    (QUICKSTART, "--config.phase_one.total_epochs=many"): r"total_epochs=many",
    (QUICKSTART, "--config.model.preset=cifar_9_exits"): (
        r"'cifar_9_exits'.*: cifar_\d_exits, .*quickstart"
    ),
    (QUICKSTART, "--config.model.num_exits=4", "--config.model.growth_factors=(1,2)"): (
        r"growth_factors.*\(1, 2\).*\(1, 1, 1, 1\)"
    ),
    (QUICKSTART, "--mode=evalute"): r"'evalute'.*: evaluate, .*phase_one",
    (QUICKSTART, "--config.data.source=/nowhere.npz", "--config.model.num_exits=4"): (
        r"config\.data\.source.*/nowhere\.npz"
    ),
}


def test_the_command_line_names_the_invalid_and_the_valid_values(tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    outcomes = forked.run(*((forked.LAUNCH, *arguments, workdir) for arguments in INVALID))
    for (arguments, message), done in zip(INVALID.items(), outcomes, strict=True):
        last = "\n".join(done.stderr.strip().splitlines()[-4:])
        assert done.returncode != 0 and re.search(message, last), (arguments, done.stderr)
        # ml_collections reports errors of a config file with a traceback.
        assert "Traceback" not in done.stderr or "Flags parsing error" in done.stderr, arguments
    assert not (tmp_path / "run").exists()


def test_a_model_field_can_be_set_in_addition_to_a_preset():
    code = (
        "import sys; from imta_jax.cli import main; main.parse_flags(sys.argv);"
        "print(main._CONFIG.value.model.num_exits)"
    )
    arguments = [QUICKSTART, "--config.model.num_exits=4", "--workdir=unused"]
    assert python("-c", code, *arguments) == "4"
