"""Two processes of four devices: the same results as one process of eight, and shared files."""

import json
import resource
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import tiny_run
from flax import nnx

from imta_jax.training import load_classifier
from imta_jax.training.state import named_arrays


def start(source, workdir, devices, *more):
    slow = [f"--config.{phase}.learning_rate=0.001" for phase in ("phase_one", "phase_two")]
    cache = source.parent / f"cache_{devices}"
    command = tiny_run.launch_command(source, workdir, cache, *slow, *more, devices=devices)
    return subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(*processes):
    """Waits for the processes and returns their logs."""
    logs = [process.communicate(timeout=300)[1] for process in processes]
    for process, text in zip(processes, logs, strict=True):
        assert process.returncode == 0, text[-3000:]
    return logs


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_two(source, workdir, *more, second=()):
    """Two processes of four devices each. The second one also has the flags `second`."""
    address = f"--coordinator_address=localhost:{free_port()}"
    return [
        start(source, workdir, 4, address, "--num_processes=2", f"--process_id={i}", *more, *own)
        for i, own in enumerate([(), second])
    ]


@pytest.fixture(scope="module")
def runs(source, tmp_path_factory):
    """The folder of a run in one process, that of a run in two, and the logs of the two."""
    folder = tmp_path_factory.mktemp("runs")
    finish(start(source, folder / "one", 8))
    logs = finish(*start_two(source, folder / "two"))
    return folder / "one", folder / "two", logs


def arrays(folder):
    classifier, _ = load_classifier(folder)
    return {name: np.asarray(value) for name, value in named_arrays(nnx.state(classifier)).items()}


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
def test_two_processes_train_like_one(runs, phase):
    one, two = (arrays(folder / phase) for folder in runs[:2])
    assert one.keys() == two.keys()
    for name, expected in one.items():
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(two[name] / scale, expected / scale, atol=2e-4, err_msg=name)


def test_a_run_resumes_with_another_number_of_devices(runs, source, tmp_path):
    one, two, _ = runs
    moved = shutil.copytree(two, tmp_path / "moved")
    for done in ("phase_one/2", "phase_two", "evaluation", "report"):
        shutil.rmtree(moved / done)
    (moved / "results.json").unlink()
    (log,) = finish(start(source, moved, 2))
    assert "phase_one epoch 1/2" not in log and "phase_one epoch 2/2" in log
    for phase in ("phase_one", "phase_two"):
        actual = arrays(moved / phase)
        for name, expected in arrays(one / phase).items():
            scale = max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(
                actual[name] / scale, expected / scale, atol=2e-4, err_msg=name
            )
    logits = [np.load(folder / "evaluation/logits_test.npz")["logits"] for folder in (one, moved)]
    np.testing.assert_allclose(*logits, atol=2e-3)


def test_every_image_is_evaluated_once(runs):
    for split, count in (("validation", 24), ("test", tiny_run.TEST_IMAGES)):
        one, two = (np.load(folder / "evaluation" / f"logits_{split}.npz") for folder in runs[:2])
        assert one["logits"].shape == two["logits"].shape and two["logits"].shape[1] == count
        np.testing.assert_array_equal(one["labels"], two["labels"])
        np.testing.assert_allclose(one["logits"], two["logits"], atol=2e-3)


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


def stop_after(processes, index, metrics, lines):
    """Sends SIGTERM to one process after a number of metrics lines; returns both logs."""
    deadline = time.monotonic() + 240
    while len(lines_of(metrics)) < lines and time.monotonic() < deadline:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.05)
    processes[index].send_signal(signal.SIGTERM)
    logs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], logs
    return logs


def test_sigterm_to_one_process_stops_and_saves_in_all(source, tmp_path):
    """Both processes stop at the same step with the same exit code.

    The run has more epochs than the processes can train before they agree on a step. Two of the
    three steps of an epoch are one dispatch, so that no process can stop at one of the steps.
    """
    folder = tmp_path / "stopped"
    longer = ("--config.phase_one.total_epochs=9000", "--config.data.steps_per_dispatch=2")
    metrics = folder / "phase_one" / "metrics.jsonl"
    stop_after(start_two(source, folder, *longer), 1, metrics, 1)
    done = len(lines_of(metrics)) // 2
    assert done >= 1
    logs = stop_after(start_two(source, folder, *longer), 0, metrics, 2 * done + 4)
    assert "phase_one epoch 1/9000" not in logs[0]
    assert f"phase_one epoch {done + 1}/9000" in logs[0]
    epochs = [json.loads(line)["epoch"] for line in lines_of(metrics)]
    assert epochs == [epoch for epoch in range(1, len(epochs) // 2 + 1) for _ in range(2)]


def test_saves_of_epochs_and_steps_do_not_block_each_other(source, tmp_path):
    """An epoch's first step is saved while the checkpoint of the last epoch is being written."""
    folder = tmp_path / "often"
    often = [
        "--config.phase_one.total_epochs=9000",
        "--config.checkpoint.every_steps=1",
        "--config.log.check_every_steps=1",
        "--config.data.steps_per_dispatch=1",
    ]
    metrics = folder / "phase_one" / "metrics.jsonl"
    stop_after(start_two(source, folder, *often), 1, metrics, 8)
    epochs = [json.loads(line)["epoch"] for line in lines_of(metrics)]
    assert epochs == [epoch for epoch in range(1, len(epochs) // 2 + 1) for _ in range(2)]
    assert list((folder / "phase_one" / "partial").glob("[0-9]*"))


def limit_files(process, size):
    """Makes larger writes of a process fail, as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_processes_with_other_flags_end_with_one_line(source, tmp_path):
    processes = start_two(source, tmp_path / "run", second=["--config.seed=5"])
    logs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], logs
    for log in logs:
        assert "config.seed: 0 in process 0, 5 in process 1" in log
        assert "Traceback" not in log and "SIGABRT" not in log
    assert not (tmp_path / "run").exists()


def test_a_full_disk_of_the_writing_process_ends_all_with_one_line(source, tmp_path):
    processes = start_two(source, tmp_path / "full", "--mode=phase_one", "--compilation_cache=")
    limit_files(processes[0], 20_000)
    logs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], logs
    for log in logs:
        assert "a checkpoint cannot be written" in log and "File too large" in log
        assert "Traceback" not in log and "SIGABRT" not in log


def test_all_processes_continue_after_a_failed_save_and_save_again(source, tmp_path):
    folder = tmp_path / "continued"
    more = ["--config.checkpoint.on_write_error=continue", "--config.phase_one.total_epochs=9000"]
    metrics, logs = folder / "phase_one" / "metrics.jsonl", ["", ""]
    processes = start_two(source, folder, *more, "--compilation_cache=")
    limit_files(processes[0], 20_000)
    for i in (0, 1):
        while "continues without it" not in logs[i]:
            logs[i] += processes[i].stderr.readline()
    assert not list((folder / "phase_one").glob("[0-9]*"))
    limit_files(processes[0], resource.RLIM_INFINITY)
    stop_after(processes, 1, metrics, len(lines_of(metrics)) + 1)
    assert list((folder / "phase_one" / "partial").glob("[0-9]*"))
    assert not list((folder / "phase_one").rglob("*tmp*"))


def test_stages_are_timed_by_one_process(runs, source, tmp_path):
    timed = shutil.copytree(runs[1], tmp_path / "timed")
    logs = finish(*start_two(source, timed, "--mode=time"))
    assert "time: measuring 2 stages" in logs[0] and "time: measuring" not in logs[1]
    assert (timed / "evaluation" / "time.json").exists()


def test_shared_files_are_written_once(runs):
    _, two, logs = runs
    for phase, epochs in (("phase_one", 2), ("phase_two", 1)):
        lines = (two / phase / "metrics.jsonl").read_text().splitlines()
        rows = [(row["epoch"], row["split"]) for row in map(json.loads, lines)]
        assert rows == [(e + 1, s) for e in range(epochs) for s in ("train", "validation")]
    assert "phase_one epoch 1/2" in logs[0] and "phase_one epoch 1/2" not in logs[1]
    assert json.loads((two / "results.json").read_text())["environment"]["devices"] == 8
    assert (two / "report" / "index.html").exists()
    assert not list(two.rglob("*.partial"))
