"""The session on one GPU: order, limits, resuming and summaries, with stub jobs."""

import argparse
import json
import subprocess
import sys
import time

import pytest

from benchmarks import gpu_session
from benchmarks.gpu_session import Job, jobs_of, run_session, summarize
from configs import cifar10, imagenet

WITHOUT_PACKAGES = """
import sys
sys.modules |= {"ml_collections": None, "tensorflow": None}
del sys.modules["ml_collections"]
from benchmarks import ml_collections_stand_in
ml_collections_stand_in.install()
from benchmarks import cases
import json
print(json.dumps([cases.case_config(n).to_dict() for n in ("cifar_5_exits", "imagenet_step_4")]))
"""


def arguments(tmp_path, **changes):
    values = {"out": tmp_path / "session.json", "device": "cuda", "quick": False, "minutes": 1.0}
    return argparse.Namespace(**{**values, **changes})


def test_the_engine_is_measured_at_all_batch_sizes_and_ours_before_pytorch(tmp_path):
    jobs = jobs_of(arguments(tmp_path))
    sizes = {job.settings["batch_size"] for job in jobs if job.kind == "engine"}
    assert sizes == {1, 256, 1024, 4096}
    assert jobs[0].settings["framework"] == "ours"
    modes = {job.settings["mode"] for job in jobs if job.kind == "steps"}
    assert {"CUDA graphs", "compiled, channels last", "eager, channels last"} <= modes
    assert "plan" in {job.kind for job in jobs}


def test_a_session_resumes_and_repeats_what_did_not_end(tmp_path, monkeypatch):
    jobs_run, problems = [], {"b": "stopped after 1 s"}
    monkeypatch.setattr(
        gpu_session,
        "run_job",
        lambda job, *_: jobs_run.append(job.name) or problems.get(job.name, ""),
    )
    jobs, path = [Job(name, "steps", {}, 1.0) for name in "abc"], tmp_path / "rows.jsonl"
    run_session(jobs, path, arguments(tmp_path))
    assert jobs_run == ["a", "b", "c"]
    problems.clear()
    run_session(jobs, path, arguments(tmp_path))
    assert jobs_run == ["a", "b", "c", "b"]


def test_no_job_starts_after_the_end_of_the_session(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "run_job", None)
    run_session([Job("a", "steps", {}, 1.0)], tmp_path / "rows", arguments(tmp_path, minutes=0.0))


def test_a_job_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    script = tmp_path / "sleeps.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu_session, "__file__", str(script))
    start = time.monotonic()
    job = Job("a", "steps", {}, 1.0)
    problem = gpu_session.run_job(job, tmp_path / "rows.jsonl", arguments(tmp_path), 0.5)
    assert problem == "stopped after 0 s" and time.monotonic() - start < 30


def test_rows_are_summarized():
    about = {"part": "steps", "kind": "phase_one", "precision": "bfloat16", "batch_size": 256}
    about["first"] = [2.0, 4.0]
    ours = {"framework": "ours", "program_bytes": 100, "ms": 2.0}
    rows = [
        about | ours | {"mode": "batches"},
        about | ours | {"mode": "resident", "ms": 1.0},
        about | {"framework": "pytorch", "mode": "eager", "ms": 3.0} | {"first": [2.0, 3.9]},
        {"part": "plan", "batch_size": 256, "precision": "bfloat16", "step_ms": 1.0}
        | {"memory_bytes": 95},
        {"part": "throughput", "batch_size": 256, "budget": 0.5, "efficiency": {"median": 0.8}},
        {"part": "throughput", "batch_size": 256, "budget": 0.7, "efficiency": {"median": 0.9}},
    ]
    assert summarize(rows) == {
        "phase_one_vs_torch (bfloat16)": 3.0,
        "min_efficiency_batch256": 0.8,
        "planned_vs_measured_step": 0.5,
        "planned_vs_measured_memory": 0.95,
        "largest_difference (bfloat16)": 0.025,
    }
    assert summarize([]) == {}


def test_configs_are_the_same_without_ml_collections():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    cifar, on_imagenet = json.loads(done.stdout)
    expected = cifar10.get_config()
    expected.model.preset = "cifar_5_exits"
    for actual, config in ((cifar, expected), (on_imagenet, imagenet.get_config())):
        assert actual["phase_one"] == json.loads(config.phase_one.to_json_best_effort())
        assert actual["model"] == json.loads(config.model.to_json_best_effort())


@pytest.mark.parametrize("name", ["steps", "engine", "plan"])
def test_every_kind_of_job_exists(name):
    assert name in gpu_session.JOBS
