"""Metrics writers: what they get, when they are closed, and errors before training."""

import json
import sys
import types

import numpy as np
import pytest
import tiny_run

import imta_jax
from imta_jax.config import LogConfig
from imta_jax.errors import InputError, MissingPackageError
from imta_jax.runtime.registry import METRICS_WRITERS
from imta_jax.runtime.write_errors import WriteErrorPolicy
from imta_jax.training.callbacks import LoggedRun, Progress, check_writers, writer_callbacks

ROWS = [
    {"epoch": 1, "step": 3, "split": "train", "loss": 0.5, "loss_per_exit": [0.2, 0.3]},
    {"epoch": 1, "step": 3, "split": "validation", "loss": 0.7, "loss_per_exit": [0.3, 0.4]},
]
CONFIG = {"seed": 0, "phase_one": {"learning_rate": 0.1}}


def train(folder, log, rows=ROWS, policy="stop"):
    """Passes rows to the writers of a log config, as the loop does."""
    run = LoggedRun("phase_one", folder / "run" / "phase_one", CONFIG)
    progress = Progress("phase_one", 2, 3, 8, state=None)
    for callback in writer_callbacks(log, run, WriteErrorPolicy(policy)):
        with callback:
            callback.on_train_start(progress)
            for row in rows:
                callback.on_metrics(progress, row)


class Recorder:
    def __init__(self):
        self.written, self.closed = [], 0

    def write(self, step, scalars):
        self.written.append((step, scalars))

    def close(self):
        self.closed += 1


@pytest.fixture
def register(monkeypatch):
    return lambda name, make: monkeypatch.setitem(METRICS_WRITERS._components, name, make)


def test_own_writers_get_scalars_by_name_and_are_closed(register, tmp_path):
    recorder, seen = Recorder(), []

    def make(options, *, run):
        seen.append((options.color, run.phase, run.config, run.name))
        return recorder

    register("mine", make)
    log = LogConfig(writers=("mine",), writer_options={"mine": {"color": "red"}})
    check_writers(log)
    train(tmp_path, log)
    assert seen == [("red", "phase_one", CONFIG, "run/phase_one")]
    assert recorder.written == [
        (3, {"train/loss": 0.5, "train/loss_per_exit/1": 0.2, "train/loss_per_exit/2": 0.3}),
        (
            3,
            {
                "validation/loss": 0.7,
                "validation/loss_per_exit/1": 0.3,
                "validation/loss_per_exit/2": 0.4,
            },
        ),
    ]
    assert recorder.closed == 1


def test_a_writer_is_closed_after_an_error(register, tmp_path):
    class Failing(Recorder):
        def write(self, step, scalars):
            raise OSError("no connection")

    recorder = Failing()
    register("failing", lambda options, *, run: recorder)
    log = LogConfig(writers=("failing",))
    with pytest.raises(OSError, match=r"metrics for failing.*no connection"):
        train(tmp_path, log)
    assert recorder.closed == 1
    train(tmp_path, log, policy="continue")


@pytest.mark.parametrize(
    "log, message",
    [
        ({"writers": ("tensorbord",)}, r"config\.log\.writers.*'tensorbord'.*first: tensorboard"),
        ({"writers": ("tensorboard", "tensorboard")}, r"log\.writers.*different"),
        ({"writer_options": {"wandb": {}}}, r"log\.writer_options.*'wandb'.*tensorboard"),
        ({"writer_options": {"tensorboard": 3}}, r"writer_options\.tensorboard.*3"),
    ],
)
def test_wrong_fields_are_rejected(log, message):
    with pytest.raises(InputError, match=message):
        check_writers(LogConfig(**log))


def test_a_writer_without_a_method_is_rejected(register, tmp_path):
    register("half", lambda options, *, run: types.SimpleNamespace(write=print))
    with pytest.raises(InputError, match=r"log\.writers 'half'.*without close"):
        train(tmp_path, LogConfig(writers=("half",)))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingPackageError, match=rf"log\.writers '{name}'.*pip install.*\[{name}\]"
    ):
        check_writers(LogConfig(writers=(name,)))


def fake_wandb(calls):
    def init(**settings):
        calls.append(("init", settings))
        return types.SimpleNamespace(
            log=lambda scalars, step: calls.append(("log", step, sorted(scalars))),
            finish=lambda: calls.append(("finish",)),
        )

    return types.SimpleNamespace(init=init)


def test_wandb_gets_config_and_scalars_and_continues_its_run(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    log = LogConfig(writers=("wandb",), writer_options={"wandb": {"project": "exits"}})
    for _ in range(2):
        train(tmp_path, log)
    (_, first), (_, second) = (call for call in calls if call[0] == "init")
    assert first["project"] == "exits" and first["config"] == CONFIG
    assert first["name"] == "run/phase_one" and first["resume"] == "allow"
    assert first["id"] == second["id"]
    logged = ("log", 3, ["train/loss", "train/loss_per_exit/1", "train/loss_per_exit/2"])
    assert calls[1] == logged and calls[3] == ("finish",)


def test_mlflow_gets_parameters_once_and_continues_its_run(monkeypatch, tmp_path):
    calls = []

    def start_run(run_id, run_name):
        calls.append(("start", run_id))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

    names = ("set_tracking_uri", "set_experiment", "log_params", "end_run")
    module = types.SimpleNamespace(
        start_run=start_run,
        log_metrics=lambda scalars, step: calls.append(("metrics", step, scalars["train/loss"])),
        **{n: lambda *values, n=n: calls.append((n, *values)) for n in names},
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    options = {"mlflow": {"tracking_uri": "http://host", "experiment": "exits"}}
    log = LogConfig(writers=("mlflow",), writer_options=options)
    for _ in range(2):
        train(tmp_path, log, ROWS[:1])
    assert calls == [
        ("set_tracking_uri", "http://host"),
        ("set_experiment", "exits"),
        ("start", None),
        ("log_params", {"seed": "0", "phase_one.learning_rate": "0.1"}),
        ("metrics", 3, 0.5),
        ("end_run",),
        ("set_tracking_uri", "http://host"),
        ("set_experiment", "exits"),
        ("start", "abc"),
        ("metrics", 3, 0.5),
        ("end_run",),
    ]
    with pytest.raises(InputError, match=r"writer_options\.mlflow 'flavor'"):
        train(tmp_path, LogConfig(writers=("mlflow",), writer_options={"mlflow": {"flavor": 1}}))


def test_without_writers_only_the_rows_are_written(tmp_path):
    train(tmp_path, LogConfig(writers=()))
    assert not list(tmp_path.iterdir())
    config = tiny_run.tiny_config("unused.npz")
    assert config.log.writers == LogConfig().writers == ("tensorboard",)
    assert json.dumps(LogConfig().to_dict()["writer_options"]) == "{}"
    assert np.all([imta_jax.register_metrics_writer])
