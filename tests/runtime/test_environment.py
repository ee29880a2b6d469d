"""Cores that a scheduler or container withholds are not counted on."""

import os

from imta_jax.runtime.environment import usable_cores


def test_cores_are_those_this_process_is_bound_to(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7}, raising=False)
    assert usable_cores() == 2


def test_without_such_bounds_they_are_the_machines(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # where even that is not known
    assert usable_cores() == 1
