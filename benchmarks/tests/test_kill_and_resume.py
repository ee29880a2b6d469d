"""The kill-and-resume check: differences that it finds, and a short run of it."""

import dataclasses
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
from compile_flags import COMPILE_FAST

from benchmarks import kill_and_resume
from benchmarks.kill_and_resume import (
    UNFINISHED,
    Moment,
    draw_moments,
    run_killed,
    stage_of,
)
from benchmarks.run_comparison import differences

COMMAND = kill_and_resume.command


def save_arrays(folder, **arrays):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), arrays, force=True)


def write_row(folder, **changes):
    row = {"step": 5, "split": "train", "loss": 0.25, "images_per_second": 9.0} | changes
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def write_results(folder, top1=50.0, finished="now"):
    environment = {"seed": 0, "finished": finished}
    results = {"exits": [{"top1": top1}], "environment": environment, "phases": {"seconds": 1}}
    (folder / "results.json").write_text(json.dumps(results))


def write_logits(folder, value=1.0):
    np.savez(folder / "evaluation" / "logits_test.npz", logits=np.float32([[value, 2]]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A minimal folder in the form of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    phase = folder / "phase_one"
    for part in ("evaluation", "report", "phase_one"):
        (folder / part).mkdir(parents=True)
    for epoch in (9, 10):
        save_arrays(phase / str(epoch) / "model", weight=np.float32([epoch, 0]))
        save_arrays(phase / str(epoch) / "progress", step=np.int32(5 * epoch))
    write_row(phase, split="train")
    write_row(phase, split="validation")
    write_results(folder)
    write_logits(folder)
    pd.DataFrame({"label": [0, 1]}).to_parquet(folder / "evaluation" / "samples.parquet")
    (folder / "report" / "index.html").touch()
    return folder


@pytest.fixture
def copied(reference, tmp_path):
    return shutil.copytree(reference, tmp_path / "copy")


def change_an_array(folder):
    # 0.0 and -0.0 are equal numbers with different bits.
    save_arrays(folder / "phase_one" / "10" / "model", weight=np.float32([10, -0.0]))


def change_the_optimizer(folder):
    save_arrays(folder / "phase_one" / "10" / "progress", step=np.int32(51))


def remove_the_last_epoch(folder):
    shutil.rmtree(folder / "phase_one" / "10")


def remove_a_row(folder):
    metrics = folder / "phase_one" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().partition("\n")[0] + "\n")


def write_half_a_row(folder):
    with (folder / "phase_one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')


DAMAGE = {
    change_an_array: "differs: phase_one/10/model['weight']",
    change_the_optimizer: "differs: phase_one/10/progress['step']",
    remove_the_last_epoch: "missing: phase_one/10/model['weight']",
    remove_a_row: "missing: phase_one/metrics.jsonl, row 2",
    write_half_a_row: "cannot be read: ",
    lambda f: write_row(f / "phase_one", step=6): "unexpected: phase_one/metrics.jsonl, r",
    lambda f: write_results(f, top1=50.1): "differs: results.json, exits",
    lambda f: (f / "results.json").unlink(): "cannot be read: ",
    lambda f: write_logits(f, 1.0000001): "differs: evaluation/logits_test.npz, logits",
    lambda f: (f / "report" / "index.html").unlink(): "missing: report/index.html",
    lambda f: (f / ".results.json.1.partial").touch(): "unexpected: .results.json.1.part",
    lambda f: (f / "phase_one" / "unreadable_9_1").mkdir(): "unexpected: phase_one/unre",
}


@pytest.mark.parametrize(("damage", "line"), DAMAGE.items(), ids=DAMAGE.values())
def test_the_comparison_finds_a_difference(damage, line, copied, reference):
    damage(copied)
    lines = differences(copied, reference)
    assert any(difference.startswith(line) for difference in lines), lines


def test_times_and_temporary_folders_are_not_compared(copied, reference):
    assert differences(copied, reference) == []
    write_results(copied, finished="later")
    (copied / "phase_one" / "metrics.jsonl").unlink()
    for split in ("train", "validation"):
        write_row(copied / "phase_one", split=split, images_per_second=1.0)
    # Orbax reuses this name.
    (copied / "phase_one" / "11.orbax-checkpoint-tmp").mkdir()
    assert differences(copied, reference) == []


def test_moments_depend_on_the_seed_and_follow_the_order_of_the_run():
    first, again, other = (draw_moments(np.random.default_rng(s), 99, 10.0) for s in (1, 1, 2))
    assert first == again != other
    bound = [moment.stage for moment in first if moment.line or moment.path]
    assert bound == sorted(bound) and set(bound) == {1, 2, 3, 4, 5}
    assert {moment.kill_signal for moment in first + other} == {signal.SIGKILL, signal.SIGTERM}
    longest = [
        dataclasses.replace(m, delay=0, kill_signal=0)
        for _, of in kill_and_resume.MOMENTS
        for m in of
    ]
    assert all(
        dataclasses.replace(m, delay=0, kill_signal=0) in longest for m in first if m.line or m.path
    )
    few = draw_moments(np.random.default_rng(1), 3, 10.0)
    assert len(few) == 3 and all(moment in first for moment in few)


LOG = [
    ("", 0),
    ("phase_one: 3 epochs of 5 steps", 1),
    ("phase_one epoch 2/3: validation", 1),
    ("phase_one epoch 3/3: validation", 2),
    ("phase_two: 2 epochs of 5 steps", 3),
    ("phase_two epoch 2/2: validation", 4),
    ("evaluation: test top-1", 4),
]


def test_the_stage_is_read_from_the_log_and_the_results(tmp_path):
    log = ""
    for line, stage in LOG:
        log += line + "\n"
        assert stage_of(log, tmp_path) == stage
    assert stage_of("phase_one: already done in x", tmp_path) == 2
    (tmp_path / "results.json").touch()
    assert stage_of("", tmp_path) == 5


def kill_a_program(program, folder, kill_signal):
    (folder / "run").mkdir()
    code = (
        f"import signal, sys, time, pathlib\nrun = pathlib.Path({str(folder / 'run')!r})\n{program}"
    )
    popen = {"args": [sys.executable, "-c", code]}
    return run_killed(
        popen, folder / "run", [Moment(5, 0.0, line="ready", kill_signal=kill_signal)]
    )


WAIT = "print('ready', flush=True); time.sleep(30)"


def test_a_program_that_resumes_has_no_problem(tmp_path):
    program = f"if not (run / 'begun').exists(): (run / 'begun').touch(); {WAIT}"
    kills, problems = kill_a_program(program, tmp_path, signal.SIGKILL)
    assert problems == []
    (kill,) = kills
    assert kill["exit_code"] == -signal.SIGKILL and kill["place"] == "start-up"


def test_a_program_that_does_not_resume_is_a_problem(tmp_path):
    program = f"""
if (run / 'begun').exists(): sys.exit('failed')
(run / 'begun').touch(); {WAIT}"""
    kills, problems = kill_a_program(program, tmp_path, signal.SIGKILL)
    assert len(kills) == 1
    assert problems == ["does not resume, exit code 1: failed"]


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="signal handlers are read from Linux /proc"
)
def test_a_wrong_exit_code_after_sigterm_is_a_problem(tmp_path):
    program = f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if not (run / 'begun').exists(): (run / 'begun').touch(); {WAIT}"""
    _, problems = kill_a_program(program, tmp_path, signal.SIGTERM)
    assert problems == ["exit code 0 after SIGTERM in start-up"]


def test_a_logged_save_that_is_not_resumed_from_is_a_problem(tmp_path):
    program = f"""
if (run / 'begun').exists(): print('phase_one epoch 2/3: again'); sys.exit()
(run / 'begun').touch(); print('phase_one stopped at step 3 of epoch 2, saved'); {WAIT}"""
    _, problems = kill_a_program(program, tmp_path, signal.SIGKILL)
    assert problems == [
        "logged as saved, but not resumed from: phase_one stopped at step 3 of epoch 2, saved"
    ]


def test_a_kill_is_recorded_with_the_files_being_written(tmp_path):
    (tmp_path / "run" / "phase_one" / "partial").mkdir(parents=True)
    (tmp_path / "run" / "phase_one" / "partial" / "2.orbax-checkpoint-tmp").mkdir()
    shutil.move(tmp_path / "run", tmp_path / "before")
    program = f"""
import shutil; shutil.copytree({str(tmp_path / "before")!r}, run, dirs_exist_ok=True)
(run / 'phase_one/partial/7.orbax-checkpoint-tmp').mkdir(exist_ok=True)
if (run / 'begun').exists(): sys.exit()
(run / 'begun').touch(); print('phase_one: 3 epochs of 5 steps'); {WAIT}"""
    (kill,), problems = kill_a_program(program, tmp_path, signal.SIGKILL)
    assert problems == []
    assert kill["place"] == "phase I, a save" and (kill["epoch"], kill["step"]) == (2, 7)
    assert "phase_one/partial/7.orbax-checkpoint-tmp" in kill["writing"]


def compiled_fast(*arguments):
    started = COMMAND(*arguments)
    started["env"] |= {"XLA_FLAGS": COMPILE_FAST, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return started


def test_a_short_check_passes(tmp_path, monkeypatch):
    moments = [
        Moment(1, 0.1, path=f"phase_one/partial/{UNFINISHED}", kill_signal=signal.SIGKILL),
        Moment(1, 0.0, line=r"phase_one epoch 1/", kill_signal=signal.SIGTERM),
    ]
    shorter = kill_and_resume.OPTIONS.replace("two.total_epochs=2", "two.total_epochs=1")
    monkeypatch.setattr(kill_and_resume, "OPTIONS", shorter)
    monkeypatch.setattr(kill_and_resume, "draw_moments", lambda *_: moments)
    monkeypatch.setattr(kill_and_resume, "command", compiled_fast)
    result = kill_and_resume.check(tmp_path, len(moments), control=False)
    kills = [row for row in result["rows"] if row["part"] == "kills"]
    assert [kill["exit_code"] for kill in kills] == [-signal.SIGKILL, 75], result
    assert result["summary"]["problems"] == 0, result
    assert result["summary"]["runs_bit_for_bit_equal"] == result["summary"]["runs"] == 1


@pytest.mark.parametrize(("problems", "kills"), [(0, 2), (1, 2), (0, 1)])
def test_problems_and_missing_kills_set_the_exit_status(problems, kills, tmp_path, monkeypatch):
    def check(root, num_kills, seed):
        summary = {"kills": kills, "problems": problems}
        return {"seeds": [seed], "rows": [], "summary": summary, "targets": {}}

    monkeypatch.setattr(kill_and_resume, "check", check)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, arguments = jax.config.jax_platforms, ["--kills=2", f"--out={tmp_path / 'out.json'}"]
    try:
        if problems == 0 and kills == 2:
            kill_and_resume.main(arguments)
        else:
            with pytest.raises(SystemExit, match=str(tmp_path)):
                kill_and_resume.main(arguments)
    finally:
        jax.config.update("jax_platforms", before)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["summary"]["kills"] == kills and str(tmp_path) not in str(result)
    remaining = list(tmp_path.glob("kill_and_resume_*"))
    assert bool(remaining) == (problems > 0 or kills < 2)
