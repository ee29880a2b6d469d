"""Processes of one run that differ; process 0 is simulated."""

import copy

import pytest
import tiny_run

from imta_jax.cli import run as run_module
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.data.fingerprint import fingerprint
from imta_jax.training import process_checks


@pytest.fixture
def process_0_has(monkeypatch):
    """Simulates process 0, given a function of this process's value."""

    def simulate(change):
        def of_process_0(value):
            changed = copy.deepcopy(value)
            return change(changed) or changed

        monkeypatch.setattr(process_checks, "from_first_process", of_process_0)
        monkeypatch.setattr(process_checks.jax, "process_index", lambda: 1)

    return simulate


def test_another_field_is_named_with_both_values(source, process_0_has):
    config = RunConfig.from_mapping(tiny_run.tiny_config(source))
    process_0_has(lambda value: value["config"]["phase_one"].update(learning_rate=0.5))
    expected = r"config\.phase_one\.learning_rate: 0\.5 in process 0, .* in process 1"
    with pytest.raises(ValueError, match=expected):
        process_checks.check_same_settings("all", {"config": config})


def test_another_mode_is_named(source, process_0_has):
    config = RunConfig.from_mapping(tiny_run.tiny_config(source))
    process_0_has(lambda value: value.update({"--mode": "phase_one"}))
    with pytest.raises(ValueError, match="--mode: 'phase_one' in process 0, 'all' in process 1"):
        process_checks.check_same_settings("all", {"config": config})


def test_the_report_fails_in_all_processes(tmp_path, monkeypatch):
    """Process 1, where process 0 is simulated, gets the error of its report."""
    config, called = tiny_run.tiny_config("unused.npz"), []
    monkeypatch.setattr(run_module, "run_in_first_process", called.append)
    monkeypatch.setattr(run_module, "_report", lambda workdir, mode: called.append(mode))
    run_module.run(config, tmp_path, "report")
    called[0]()
    assert called[1:] == ["report"]


def test_equal_settings_and_other_paths_of_the_data_are_accepted(source, process_0_has):
    config = tiny_run.tiny_config(source)
    process_0_has(lambda value: None)
    process_checks.check_same_settings("all", {"config": RunConfig.from_mapping(config)})
    config.data.index_dir = "elsewhere"
    process_checks.check_same_settings("all", {"config": RunConfig.from_mapping(config)})


def test_other_images_are_reported_by_split(source, process_0_has):
    value = fingerprint(load_dataset(tiny_run.tiny_config(source).data))
    process_0_has(lambda first: first["splits"]["train"].update(digest="0"))
    with pytest.raises(ValueError, match=r"config\.data\.source.*process 1.*\n  train: "):
        process_checks.check_same_data_in_all(value)


def test_a_folder_that_is_not_shared_is_named(tmp_path, process_0_has, monkeypatch):
    process_0_has(lambda _: "process 3 on another host")
    monkeypatch.setattr(process_checks.jax, "process_count", lambda: 2)
    monkeypatch.setattr(process_checks, "_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(process_checks, "raise_in_all_processes", raise_own)
    with pytest.raises(ValueError, match=rf"--workdir.*\n.*{tmp_path}"):
        process_checks.check_folder_is_shared(tmp_path)


def raise_own(error):
    if error is not None:
        raise error
