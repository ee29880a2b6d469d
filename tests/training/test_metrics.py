"""Log lines and metrics of training, and errors of the disk."""

import errno
import logging
import re
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run

from imta_jax.cli.run import run
from imta_jax.data.sources import SourceRequest
from imta_jax.distributed import data_mesh
from imta_jax.runtime.preemption import StopRequest
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training import phases
from imta_jax.training.callbacks import (
    CompilationLines,
    EpochLine,
    IntervalLines,
    JsonlWriter,
    LoggedRun,
    Progress,
    WriterCallback,
)
from imta_jax.training.callbacks import progress as progress_callbacks
from imta_jax.training.metrics import format_per_exit
from imta_jax.training.objectives import ExitMetrics

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    monkeypatch.setattr(phases, "mesh_of", lambda config: data_mesh(jax.devices()[:1]))


def progress(step=0, **changes):
    """Progress of a phase of 2 epochs of 100 steps, after `step` steps of the first."""
    zeros = ExitMetrics(np.float32([0.5, 0.25]), np.float32([50, 75]))
    return Progress("phase_one", 2, 100, 64, state=None, metrics=[zeros] * step, **changes)


def test_a_line_has_loss_accuracy_throughput_input_wait_and_time_left(caplog):
    lines = IntervalLines(1e-3)
    lines.on_epoch_start(progress())
    time.sleep(0.01)
    with caplog.at_level(logging.INFO, "imta_jax"):
        lines.on_check(progress(20), progress(20).metrics)
    assert re.fullmatch(
        r"phase_one step 20/200: loss per exit 0\.500 0\.250; top-1 per exit 50\.0 75\.0;"
        r" [\d,]+ images/s; 0% waiting for input; about .* left in this phase",
        caplog.messages[0],
    )


class Clock:
    """Stands for the module `time`; the test sets the time."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_callbacks, "time", clock)
    return clock


def test_the_time_left_excludes_the_compilation_of_the_step(clock, caplog):
    callbacks = [CompilationLines(), IntervalLines(1), EpochLine()]

    def call(method, *arguments):
        for callback in callbacks:
            getattr(callback, method)(*arguments)

    with caplog.at_level(logging.INFO, "imta_jax"):
        call("on_epoch_start", progress())
        call("on_step_start", progress())
        clock.now = 40.0
        call("on_step_end", progress(steps_in_flight=1))
        clock.now = 50.0
        call("on_check", progress(20), progress(20).metrics)
        clock.now = 90.0
        call("on_metrics", progress(100), {"split": "train"})
        clock.now = 95.0
        call("on_epoch_end", progress(100, validation_top1=[50.0, 75.0]))
    compiling, dispatched, line, epoch = caplog.messages
    assert compiling == "phase_one: compiling the training step"
    assert "dispatched after 40.0 s" in dispatched
    assert "128 images/s" in line and "about 1 min 30 s left" in line  # 10 s for 20 of 200 steps
    assert "about 55 s left" in epoch


def test_the_time_left_after_a_resume_counts_full_epochs(clock, caplog):
    line = EpochLine()
    line.on_epoch_start(progress(75))
    line.on_step_end(progress(75, steps_in_flight=1))
    clock.now = 10.0
    line.on_metrics(progress(100), {"split": "train"})
    with caplog.at_level(logging.INFO, "imta_jax"):
        line.on_epoch_end(progress(100, validation_top1=[50.0, 75.0]))
    assert "about 40 s left" in caplog.text


def test_lines_are_not_logged_more_often_than_configured(caplog):
    with caplog.at_level(logging.INFO, "imta_jax"):
        for lines in (IntervalLines(3600), IntervalLines(0)):
            lines.on_epoch_start(progress())
            for i in range(1, 9):
                lines.on_check(progress(i), progress(1).metrics)
    assert not caplog.messages


def test_a_run_logs_lines_and_writes_a_profile_of_the_configured_steps(source, tmp_path, caplog):
    config = tiny_run.tiny_config(
        source, log__line_every_seconds=1e-6, log__check_every_steps=1, log__profile_steps=(4, 6)
    )
    with caplog.at_level(logging.INFO, "imta_jax"):
        run(config, tmp_path, "phase_one")
    steps = re.findall(r"phase_one step (\d+)/9: loss per exit \S+ \S+; top-1", caplog.text)
    assert [int(step) for step in steps] == list(range(1, 10))
    assert list((tmp_path / "phase_one" / "profile").rglob("*.xplane.pb"))
    assert "profile: tensorboard --logdir" in caplog.text


FULL = OSError(errno.ENOSPC, "No space left on device")
# The form in which TensorStore raises it.
STORAGE = ValueError(f"RESOURCE_EXHAUSTED: Error writing {'a/' * 200} [os_error_code='28']")


def fail_saves(patch, error, names=None):
    """Makes saving fail, for checkpoints of these names or for all."""
    save = ocp.CheckpointManager.save

    def fail(self, step, *arguments, **more):
        if names is None or step in names:
            raise error
        return save(self, step, *arguments, **more)

    patch.setattr(ocp.CheckpointManager, "save", fail)


@pytest.mark.parametrize("error", [FULL, STORAGE])
def test_a_full_disk_stops_the_run_and_the_next_one_resumes(error, source, tmp_path, monkeypatch):
    config = tiny_run.tiny_config(source)
    with monkeypatch.context() as patch:
        fail_saves(patch, error, names=[2])
        with pytest.raises(OSError, match=rf"{tmp_path}.*No space left on device") as error:
            run(config, tmp_path, "phase_one")
        assert error.value.errno == errno.ENOSPC
    run(config, tmp_path, "phase_one")
    assert phases.phase_is_finished(config, tmp_path, "phase_one")


def test_a_full_disk_is_logged_and_tolerated_under_the_policy_continue(
    source, tmp_path, monkeypatch, caplog
):
    config = tiny_run.tiny_config(source, checkpoint__on_write_error="continue")
    fail_saves(monkeypatch, STORAGE, names=[2])
    with caplog.at_level(logging.ERROR, "imta_jax"):
        run(config, tmp_path, "phase_one")
    assert "a checkpoint cannot be written" in caplog.text
    assert phases.phase_is_finished(config, tmp_path, "phase_one")


def test_the_last_checkpoint_is_required_under_every_policy(source, tmp_path, monkeypatch):
    config = tiny_run.tiny_config(source, checkpoint__on_write_error="continue")
    fail_saves(monkeypatch, FULL)
    with pytest.raises(OSError, match=r"checkpoint.*No space left on device"):
        run(config, tmp_path, "phase_one")


def test_a_save_that_fails_in_the_background_does_not_affect_the_next(
    source, tmp_path, monkeypatch, caplog
):
    wait, failures = ocp.CheckpointManager.wait_until_finished, [STORAGE]

    def fails_once(self):
        wait(self)
        if self.latest_step() == 1 and failures:
            raise failures.pop()

    config = tiny_run.tiny_config(source, checkpoint__on_write_error="continue")
    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fails_once)
    with caplog.at_level(logging.ERROR, "imta_jax"):
        run(config, tmp_path, "phase_one")
    assert "continues without it" in caplog.text
    assert {path.name for path in (tmp_path / "phase_one").glob("[0-9]")} >= {"2", "3"}


def test_a_failed_save_on_preemption_is_not_reported_as_saved(source, tmp_path, monkeypatch):
    config = tiny_run.tiny_config(source, checkpoint__on_write_error="continue")
    fail_saves(monkeypatch, FULL)
    results = iter([False, True])  # After one step and after two.
    monkeypatch.setattr(StopRequest, "should_stop", lambda self: next(results))
    with pytest.raises(OSError, match=r"checkpoint.*No space left on device"):
        run(config, tmp_path, "phase_one")


def test_the_write_error_policy_does_not_catch_other_errors(tmp_path):
    with (
        pytest.raises(ValueError, match="a bug"),
        WriteErrorPolicy("continue").writing("metrics", tmp_path),
    ):
        raise ValueError("a bug")
    with pytest.raises(ValueError, match=r"contineu.*continue, stop"):
        WriteErrorPolicy("contineu")


def test_settings_without_effect_on_results_may_change_on_resume(source, tmp_path):
    run(tiny_run.tiny_config(source), tmp_path, "phase_one")
    unrelated = {"log__profile_steps": (1, 2), "checkpoint__on_write_error": "continue"}
    run(tiny_run.tiny_config(source, **unrelated), tmp_path, "phase_one")
    with pytest.raises(ValueError, match=r"config\.seed.* 0, .* 1"):
        run(tiny_run.tiny_config(source, seed=1, **unrelated), tmp_path, "phase_one")


def test_a_workdir_that_cannot_be_created_is_named_in_the_error(source, tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match=rf"--workdir={tmp_path}/file"):
        run(tiny_run.tiny_config(source), tmp_path / "file", "phase_one")


@pytest.mark.parametrize("share", [-0.1, 5])
def test_max_undecodable_outside_0_to_1_raises(share):
    with pytest.raises(ValueError, match=rf"max_undecodable.*{share}"):
        SourceRequest("somewhere", max_undecodable=share)


def test_values_of_many_exits_are_formatted_as_a_range():
    assert format_per_exit([88.01, 90.0], 1) == "per exit 88.0 90.0"
    many = format_per_exit([float(value) for value in range(348)], 1)
    assert many == "of 348 exits 0.0 to 347.0"


def test_without_tensorboard_metrics_are_still_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # Or the PyTorch that it imports.
    row = {"epoch": 1, "step": 3, "split": "training", "loss": 0.5}
    policy = WriteErrorPolicy("stop")
    events = WriterCallback("tensorboard", {}, LoggedRun("phase_one", tmp_path), policy)
    with JsonlWriter(tmp_path, policy) as rows, events:
        events.on_train_start(progress())
        for _ in range(2):
            rows.on_metrics(progress(), row)
            events.on_metrics(progress(), row)
    assert len(rows.path.read_text().splitlines()) == 2
    assert caplog.text.count("no TensorBoard events") == 1
