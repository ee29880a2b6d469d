"""The arithmetic of the early-exit benchmark, on synthetic measurements."""

import numpy as np
import pytest

from benchmarks import early_exit

MACS = np.array([20, 50, 100])


def measured(seconds_per_image, rounds=3):
    """Seconds per image and per batch, the same in every round."""
    return np.tile([seconds_per_image, 256 * seconds_per_image], (rounds, 1))


@pytest.fixture
def seconds():
    return {
        "images first, slices of 16": measured(1.0),
        "images last, slices of 16": measured(1.1),
        "evaluation's program": measured(1.2),
        0.5: measured(0.6),
    }


def test_the_full_network_runs_as_its_fastest_program(seconds):
    assert early_exit._fastest(seconds) == "images first, slices of 16"


def test_efficiency_is_speed_up_over_the_speed_up_in_macs(seconds):
    exits = np.array([0] * 50 + [2] * 50)  # Mean multiply-adds: 60 of 100.
    row = early_exit._row(seconds, 0.5, early_exit._fastest(seconds), exits, MACS)
    assert row["macs_share"] == 0.6
    assert row["speed_up"]["median"] == pytest.approx(1 / 0.6, rel=1e-3)
    assert row["efficiency"]["median"] == pytest.approx(1.0, rel=1e-3)
    assert row["latency_ms"] == pytest.approx(1e3 * 256 * 0.6, rel=1e-3)


def test_a_contender_is_timed_on_every_image_once():
    seen = []
    measure = early_exit.timed(lambda batch: seen.append(len(batch)), np.zeros((10, 2)), 4)
    per_image, per_batch = measure(0)
    assert seen == [4, 4, 2] and per_image > 0 and per_batch > 0


def test_the_figure_has_a_line_per_batch_size():
    rows = [
        {"batch_size": size, "macs_share": share, "speed_up": {"median": 1 / share}}
        for size in (1, 256)
        for share in (0.5, 1.0)
    ]
    (axes,) = early_exit.draw(rows, "title").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "batches of 1",
        "batches of 256",
    ]
    assert len(axes.lines) == 3
