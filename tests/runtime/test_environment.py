import os
from types import SimpleNamespace

import jax

import imta_jax
from imta_jax.runtime.environment import environment_record, usable_cores


def test_a_process_limited_to_some_cores_counts_only_these(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert usable_cores() == 2


def test_without_core_limits_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # On systems that do not report it.
    assert usable_cores() == 1


def test_the_record_has_device_cpu_cores_and_versions():
    module = SimpleNamespace(__name__="other", __version__="3.1")
    record = environment_record([module])
    assert record["device"] == jax.devices()[0].device_kind
    assert record["devices"] == jax.device_count()
    assert record["cores"] == usable_cores() and record["cpu"]
    versions = record["versions"]
    assert versions["imta_jax"] == imta_jax.__version__ and versions["jax"] == jax.__version__
    assert {"python", "jaxlib", "flax", "numpy"} <= versions.keys() and versions["other"] == "3.1"
