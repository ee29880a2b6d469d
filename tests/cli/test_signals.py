"""SIGTERM and Ctrl-C at any time of a launch: exit code 75, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run

from imta_jax.runtime.preemption import EXIT_CODE, FORCED_EXIT_CODE

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def start(source, workdir):
    longer = ("--config.data.pipeline=numpy", "--config.phase_one.total_epochs=9000")
    command = tiny_run.launch_command(source, workdir, source.parent / "cache", *longer)
    return subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def is_ready(process):
    """Whether the process handles SIGTERM or holds it back; Python itself handles Ctrl-C."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = dict(line.split(":\t") for line in status.splitlines())
    bit = 1 << (signal.SIGTERM - 1)
    return any(int(masks[name], 16) & bit for name in ("SigBlk", "SigCgt"))


def finish(process, number):
    process.send_signal(number)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == EXIT_CODE, error
    assert "Traceback" not in error and "run the same command to resume" in error
    return error


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("delay", [0, 1])
def test_a_signal_in_the_first_seconds_ends_the_process(delay, number, source, tmp_path):
    with start(source, tmp_path / "run") as process:
        while not is_ready(process):
            time.sleep(0.01)
        time.sleep(delay)
        assert "nothing to save" in finish(process, number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_first_step_compiles_ends_the_process(number, source, tmp_path):
    with start(source, tmp_path / "run") as process:
        for line in process.stderr:
            if "phase_one: 9000 epochs" in line:
                break
        finish(process, number)


def test_ctrl_c_in_training_saves_and_the_same_command_resumes(source, tmp_path):
    workdir, resumed = tmp_path / "run", False
    metrics = workdir / "phase_one" / "metrics.jsonl"
    for lines in (1, 5):
        with start(source, workdir) as process:
            while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
                assert process.poll() is None
                time.sleep(0.02)
            error = finish(process, signal.SIGINT)
        assert "stopped at step" in error and ", saved" in error
        assert resumed == ("phase_one epoch 1/" not in error)
        resumed = True


# Sends a signal to the process when it imports a module.
SITE = """
import os, sys
class Finder:
    def find_spec(name, *_):
        if name == os.environ["SIGNAL_AT"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
sys.meta_path.insert(0, Finder)
"""


def signaled_at(module, number, arguments, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ
        | {"SIGNAL_AT": module, "SIGNAL": str(int(number))}
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(tiny_run.ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("program", ["launch.py", "imta_jax/cli/commands.py"])
def test_a_signal_while_a_run_imports_its_modules_ends_it_with_its_own_code(
    program, number, tmp_path
):
    start = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"
    if program != "launch.py":
        start = "from imta_jax.cli.commands import main; main()"
    arguments = ["-c", start.replace("sys.argv[0]", repr(str(tiny_run.ROOT / program)))]
    flags = ["--config=quickstart", f"--workdir={tmp_path}/run"]
    done = signaled_at("imta_jax.cli.main", number, [*arguments, *flags], tmp_path)
    assert done.returncode == EXIT_CODE, done.stderr
    assert "nothing to save" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "module, arguments",
    [
        ("imta_jax.inference.command", ["-m", "imta_jax.inference", "folder"]),
        ("imta_jax.inference.export.run_export", ["-m", "imta_jax.inference.export", "run", "to"]),
        (
            "imta_jax.inference.export.run_export",
            ["-c", "from imta_jax.cli.commands import main; main()", "export", "run", "to"],
        ),
    ],
)
def test_ctrl_c_ends_other_commands_with_one_line(module, arguments, tmp_path):
    done = signaled_at(module, signal.SIGINT, arguments, tmp_path)
    assert done.returncode == FORCED_EXIT_CODE, done.stderr
    assert done.stderr.endswith(": interrupted\n") and done.stderr.count("\n") == 1
