"""The progress bar on a terminal."""

import numpy as np
import pytest

from imta_jax.training.callbacks import ProgressBar
from imta_jax.training.callbacks.base import Progress
from imta_jax.training.objectives import ExitMetrics


@pytest.fixture
def on_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)


def metrics(loss):
    return ExitMetrics(np.float32([9.0, loss]), np.float32([0.1, 0.2]))


def test_the_bar_shows_compilation_then_loss_and_throughput(on_terminal):
    progress = Progress("phase_one", 2, 10, 32, state=None)
    with ProgressBar() as bar:
        bar.on_epoch_start(progress)
        assert "phase_one 1/2" in str(bar._bar) and "compiling" in str(bar._bar)
        progress.last_dispatch_steps = 4
        bar.on_step_end(progress)
        assert "compiling" not in str(bar._bar) and "4/20" in str(bar._bar)
        bar.on_check(progress, [metrics(1.5)] * 4)
        assert "loss 1.500" in str(bar._bar) and "images/s" in str(bar._bar)
        bar.on_epoch_end(progress)
        progress.epoch = 1
        bar.on_epoch_start(progress)
        assert "compiling" not in str(bar._bar)
