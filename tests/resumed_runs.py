"""Comparison of phase folders, and ways to end a run or damage its checkpoints."""

import contextlib
import json
import shutil

import chex
import orbax.checkpoint as ocp
import pytest
import tiny_run

from imta_jax.training import (
    feed,
    train_phase_one,
    train_phase_two,
)

TRAIN = {"phase_one": train_phase_one, "phase_two": train_phase_two}


def saved(folder, epoch):
    """All arrays of a checkpoint by name: parameters, statistics, optimizer and step."""
    arrays = {}
    for item in ("model", "progress"):
        with ocp.StandardCheckpointer() as checkpointer:
            arrays[item] = tiny_run.to_host(checkpointer.restore(folder / str(epoch) / item))
    return arrays


def rows(folder):
    """The rows of metrics.jsonl without timings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("images_per_second", "input_wait_share")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def assert_same_phase(actual, expected, epochs):
    """Compares the final arrays and rows of two phase folders; each epoch has one row per split."""
    chex.assert_trees_all_equal(saved(actual, epochs), saved(expected, epochs))
    assert rows(actual) == rows(expected)
    assert [(row["epoch"], row["split"]) for row in rows(actual)] == [
        (epoch, split) for epoch in range(1, epochs + 1) for split in ("train", "validation")
    ]


class Killed(Exception):
    """Simulates the death of the process."""


@contextlib.contextmanager
def killed_at(killed_epoch, batch):
    """Expects that training in the block dies before a batch of an epoch; both count from 0."""
    batches = feed.train_batches

    def until_killed(split, preprocessing, *, epoch, **settings):
        for i, actual in enumerate(batches(split, preprocessing, epoch=epoch, **settings)):
            if (epoch, i) == (killed_epoch, batch):
                raise Killed
            yield actual

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(feed, "train_batches", until_killed)
        yield


def truncate(checkpoint):
    for path in (checkpoint / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_weight(checkpoint):
    """Changes a byte of the arrays, which TensorStore reads without an error."""
    path = max((checkpoint / "model").rglob("ocdbt.*/d/*"), key=lambda path: path.stat().st_size)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 255
    path.write_bytes(contents)


def lose_the_optimizer(checkpoint):
    shutil.rmtree(checkpoint / "progress")


def lose_the_data(checkpoint):
    for path in sorted((checkpoint / "model").rglob("d/*")):
        if path.is_file():
            path.unlink()
