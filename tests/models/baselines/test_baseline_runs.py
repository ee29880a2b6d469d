"""A baseline through training, evaluation, report and doctor."""

import re

import baseline_networks as baselines
import pytest

from imta_jax.cli.doctor import describe_run
from imta_jax.cli.run import run
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.report.run.run_record import load_run

pytestmark = pytest.mark.usefixtures("compilation_cache")


def test_a_network_with_one_exit_is_trained_evaluated_and_reported(source, tmp_path, caplog):
    config = baselines.baseline_config(source, "resnet_14", channels=2, depths=(1, 1))
    run(config, tmp_path / "run")
    record = load_run(tmp_path / "run")
    assert len(record.exits) == 1
    assert record.threshold_methods is None
    assert "not reported" not in caplog.text
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_the_doctor_lists_the_fields_and_layers_of_a_baseline(source, tmp_path):
    config = RunConfig.from_mapping(
        baselines.baseline_config(source, "quickstart_resnet_mc", channels=2)
    )
    text = describe_run(config, load_dataset(config.data), tmp_path)
    assert re.search(r"model\.exits +\(3, 4, 6\)", text) and "layer 8" in text
