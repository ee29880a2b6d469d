"""The training loop: no host sync between checks, one trace, and the order of callbacks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from imta_jax.distributed import data_mesh
from imta_jax.training.callbacks import Callback, Progress
from imta_jax.training.feed import host_feed
from imta_jax.training.loop import TrainingLoop
from imta_jax.training.objectives import ExitMetrics
from imta_jax.training.step import jit_batch_step

BATCHES = [tiny_run.draw_batch(16, seed) for seed in range(6)]
CHECK_EVERY_STEPS = 3
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def phase():
    return tiny_run.make_phase("phase_one", data_mesh(jax.devices()[:1]))


class TransferGuard(Callback):
    """Forbids implicit transfers from the first step after a check to the next check."""

    def __init__(self):
        self.guard, self.checks = None, []

    def on_step_start(self, progress: Progress) -> None:
        if self.guard is None:
            self.guard = jax.transfer_guard("disallow")
            self.guard.__enter__()

    def on_check(self, progress: Progress, new: list[ExitMetrics]) -> None:
        self.checks.append((progress.step, len(new)))
        self.release()

    def release(self) -> None:
        if self.guard is not None:
            self.guard.__exit__(None, None, None)
            self.guard = None

    def __exit__(self, *_) -> None:
        self.release()


def run_loop(phase, step, callbacks):
    zeros = ExitMetrics(np.zeros(2), np.zeros(2))
    loop = TrainingLoop(
        phase="phase_one",
        total_epochs=2,
        steps_per_epoch=len(BATCHES),
        batch_size=16,
        feed=host_feed("numpy", lambda epoch, start: BATCHES[start:], step, phase.mesh),
        validate=lambda state: zeros,
        learning_rate=lambda step: 0.1,
        check_every_steps=CHECK_EVERY_STEPS,
        callbacks=callbacks,
    )
    return loop.run(phase.new_state())


def test_the_host_waits_for_the_devices_only_in_checks(phase, monkeypatch):
    guard, reads = TransferGuard(), []
    steps = iter(range(1, 2 * len(BATCHES) + 1))

    def step(state, batch):
        result = phase.step(state, batch)
        reads.append(("step", next(steps)))
        return result

    # On CPU, a transfer guard does not detect reads by the host.
    array_type = type(jnp.zeros(()))
    read = array_type._value.fget

    def recorded(array):
        reads.append(("read", array.shape))
        return read(array)

    state = phase.new_state()
    jax.block_until_ready(phase.step(state, BATCHES[0]))  # Compiles outside the guard.
    monkeypatch.setattr(array_type, "_value", property(recorded))
    run_loop(phase, step, [guard])
    assert guard.checks == [(3, 3), (6, 3), (9, 3), (12, 3)]
    between = [i for i, (kind, _) in enumerate(reads) if kind == "read"]
    assert between  # Checks read metrics.
    for i in between:
        before = max(at for kind, at in reads[:i] if kind == "step")
        assert before % CHECK_EVERY_STEPS == 0, reads[: i + 1]


def test_the_step_is_traced_once_over_steps_and_epochs(phase):
    chex.clear_trace_counter()
    step = chex.assert_max_traces(phase.step.__wrapped__, n=1)
    state = run_loop(phase, jit_batch_step(step, phase.mesh), [])
    assert int(state.step) == 2 * len(BATCHES)


def test_callbacks_are_called_in_order(phase):
    calls = []

    class Recorder(Callback):
        def __enter__(self):
            calls.append("enter")
            return self

        def __exit__(self, *_):
            calls.append("exit")

        def __getattribute__(self, name):
            if name.startswith("on_"):
                calls.append(name)
            return super().__getattribute__(name)

    run_loop(phase, phase.step, [Recorder()])
    steps = ["on_step_start", "on_step_end"] * CHECK_EVERY_STEPS + ["on_check"]
    epoch = ["on_epoch_start", *steps, *steps, "on_metrics", "on_metrics", "on_epoch_end"]
    assert calls == ["enter", "on_train_start", *epoch, *epoch, "exit"]


def test_a_callback_may_request_a_check(phase):
    checks = []

    class EveryStep(Callback):
        def needs_check(self, progress):
            return True

        def on_check(self, progress, new):
            checks.append(progress.step)

    run_loop(phase, phase.step, [EveryStep()])
    assert checks == list(range(1, 2 * len(BATCHES) + 1))
