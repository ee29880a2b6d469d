"""JSON files of a run: damaged files, failed writes and the write error policy."""

import contextlib
import errno
import json
import logging
import os
import resource

import pytest
import tensorflow as tf
from tensorboardX.proto.event_pb2 import Event

from imta_jax.errors import ExistingFileError
from imta_jax.runtime.json_files import (
    append_json_line,
    read_json,
    read_json_lines,
    read_json_or_none,
)
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks import JsonlWriter, LoggedRun, Progress, WriterCallback
from imta_jax.training.metrics import training_seconds

DAMAGE = [b"", b'{"a": 1', b"\0" * 40, b"\xff\xfe", b"[1]", b"3", b'{"a": 1}{']


@contextlib.contextmanager
def largest_file(size):
    """Limits the size of files, like `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_file_is_named_with_the_fix(content, tmp_path, caplog):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path}.*run it again"):
        read_json(path, "run it again")
    with caplog.at_level(logging.WARNING, "imta_jax"):
        assert read_json_or_none(path, "it is written again") is None
    assert str(path) in caplog.text and "it is written again" in caplog.text


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_pipe_in_place_of_a_file_is_named_and_not_opened(make, tmp_path):
    path = tmp_path / "metrics.jsonl"
    make(path)
    for call in (
        lambda: read_json(path, ""),
        lambda: read_json_or_none(path, ""),
        lambda: read_json_lines(path),
        lambda: append_json_line(path, {}),
    ):
        with pytest.raises(ExistingFileError, match=rf"{path} is a .*expected a .*file"):
            call()


def test_a_missing_file_is_none_without_a_warning(tmp_path, caplog):
    assert read_json_or_none(tmp_path / "none.json", "") is None
    assert read_json_lines(tmp_path / "none.jsonl") == []
    assert not caplog.messages


@pytest.mark.parametrize("damage", [b'{"epo', b"\0\0\0", b"\xff", b"[1]", b'{"a": 1}{"epoch": 2}'])
def test_damaged_lines_are_skipped_with_a_warning(damage, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 1}\n' + damage + b'\n{"epoch": 3}\n' + damage)
    with caplog.at_level(logging.WARNING, "imta_jax"):
        assert read_json_lines(path) == [{"epoch": 1}, {"epoch": 3}]
    assert f"{path}: 2 of 4 lines" in caplog.text


@pytest.mark.parametrize("free", [0, 1, 10])
def test_a_failed_append_does_not_change_the_file(free, tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    append_json_line(path, {"epoch": 1})
    before = path.read_bytes()
    with largest_file(len(before) + free), pytest.raises(OSError):
        append_json_line(path, {"epoch": 2})
    assert path.read_bytes() == before
    append_json_line(path, {"epoch": 3})
    assert read_json_lines(path) == [{"epoch": 1}, {"epoch": 3}]


def test_an_append_after_an_incomplete_line_starts_a_new_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 1}\n{"ep')
    append_json_line(path, {"epoch": 2})
    assert read_json_lines(path) == [{"epoch": 1}, {"epoch": 2}]


def row(epoch):
    numbers = {"loss": 0.5, "loss_per_exit": [0.25] * 20, "top1_per_exit": [50.0] * 20}
    return {"epoch": epoch, "step": 3 * epoch, "split": "train", **numbers}


def progress(epoch=0):
    return Progress("phase_one", 9, 3, 64, state=None, epoch=epoch)


def tensorboard(folder, policy):
    return WriterCallback("tensorboard", {}, LoggedRun("phase_one", folder), policy)


@pytest.mark.parametrize("writer", [JsonlWriter, tensorboard])
def test_failed_writes_of_metrics_are_logged_under_the_policy_continue(writer, tmp_path, caplog):
    with writer(tmp_path, WriteErrorPolicy("continue")) as metrics:
        metrics.on_train_start(progress())
        metrics.on_metrics(progress(), row(1))
        with largest_file(30):
            metrics.on_train_start(progress(1))
            for epoch in (2, 3):
                metrics.on_metrics(progress(), row(epoch))
        metrics.on_metrics(progress(), row(4))
    assert caplog.text.count("cannot be written") >= 2
    if writer is JsonlWriter:
        assert [entry["epoch"] for entry in read_json_lines(metrics.path)] == [1, 4]


def test_a_folder_that_cannot_be_written_is_logged_under_the_policy_continue(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for writer in (JsonlWriter, tensorboard):
        with writer(tmp_path / "file", WriteErrorPolicy("continue")) as metrics:
            metrics.on_train_start(progress())
            metrics.on_metrics(progress(), row(1))
    assert caplog.text.count("cannot be written") == 2


def test_a_failed_write_of_metrics_raises_under_the_policy_stop(tmp_path):
    for writer in (JsonlWriter, tensorboard):
        with (
            pytest.raises(OSError, match=str(tmp_path)),
            largest_file(10),
            writer(tmp_path, WriteErrorPolicy("stop")) as metrics,
        ):
            metrics.on_train_start(progress())
            metrics.on_metrics(progress(), row(1))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EROFS, "write access"),
        (errno.EACCES, "permissions of the folder"),
    ],
)
def test_the_advice_after_a_failed_write_fits_its_cause(number, remedy, tmp_path):
    with (
        pytest.raises(OSError, match=rf"{tmp_path} \({os.strerror(number)}\); .*{remedy}"),
        WriteErrorPolicy("stop").writing("metrics", tmp_path),
    ):
        raise OSError(number, os.strerror(number))


def test_tensorboard_reads_the_rows_before_and_after_a_failure(tmp_path):
    with tensorboard(tmp_path, WriteErrorPolicy("continue")) as events:
        events.on_train_start(progress())
        events.on_metrics(progress(), row(1))
        (path,) = (tmp_path / "tensorboard").iterdir()
        with largest_file(path.stat().st_size + 100):
            events.on_metrics(progress(), row(2))
        events.on_metrics(progress(), row(3))
    actual = [Event.FromString(x.numpy()) for x in tf.data.TFRecordDataset(str(path))]
    assert actual[0].file_version == "brain.Event:2" and not actual[0].summary.value
    values = {(e.step, v.tag): v.simple_value for e in actual for v in e.summary.value}
    assert {step for step, _ in values} == {3, 9}
    assert values[3, "train/loss"] == 0.5 and values[9, "train/top1_per_exit/20"] == 50


def test_training_seconds_do_not_need_the_first_row():
    rows = [{"epoch": e, "step": 10 * e, "images_per_second": 5.0} for e in (1, 2, 3)]
    rows.append({"epoch": 4, "step": 40, "images_per_second": 0.0})
    assert training_seconds(rows[:2], 2) == 8.0
    assert training_seconds(rows[1:2], 2) == 4.0
    assert training_seconds(rows[3:], 2) == 0
    assert json.dumps(training_seconds([], 2)) == "0"
