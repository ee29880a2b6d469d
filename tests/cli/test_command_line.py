"""Errors on the command line: one line for a `UserError`, the traceback for a bug."""

import errno
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import forked
import numpy as np
import pytest
import tiny_run

from imta_jax.cli import commands
from imta_jax.data.sources.npz import read_npz
from imta_jax.errors import UserError
from imta_jax.evaluation import geometric_quota
from imta_jax.nn.pixels import normalize
from imta_jax.runtime import command_line
from imta_jax.runtime.lock import lock_workdir
from imta_jax.training import NonFiniteLossError


def caught(function):
    with pytest.raises(Exception) as raised:
        function()
    return raised.value


def hold_twice(folder):
    with lock_workdir(folder), lock_workdir(folder):
        pass


def test_errors_of_our_checks_have_a_plain_message(tmp_path):
    cases = [
        (lambda: geometric_quota(np.array([-1.0]), 3), "q"),
        (lambda: read_npz(Path("/nowhere.npz"), None), "/nowhere.npz"),
        (lambda: hold_twice(tmp_path), str(tmp_path)),
    ]
    for function, value in cases:
        message = command_line.plain_message(caught(function))
        assert message.startswith("error: ") and value in message


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "write access"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_disk_errors_have_a_plain_message_whoever_raises_them(number, remedy):
    class FullDisk:
        def write(self, *_):
            raise OSError(number, os.strerror(number))

    message = command_line.plain_message(caught(lambda: print("row", file=FullDisk())))
    assert os.strerror(number) in message and "--workdir" in message and "\n" not in message
    assert remedy in message and ("free space" in message) == (number == errno.ENOSPC)


def test_bugs_keep_their_traceback(tmp_path):
    def raised_elsewhere():
        raise ValueError("raised by another program")

    three = np.zeros((2, 3), np.uint8)
    bugs = [
        raised_elsewhere,
        lambda: normalize(three, (0.5, 0.5), (1.0, 1.0)),  # a ValueError of JAX
        lambda: lock_workdir(None).__enter__(),  # an AttributeError
        lambda: lock_workdir(tmp_path / "a\0b").__enter__(),  # a ValueError of the operating system
    ]
    for function in bugs:
        error = caught(function)
        assert command_line.plain_message(error) is None, error
        with pytest.raises(type(error)):
            command_line.exit_with_error(error, show_traceback=False)


def test_errors_of_a_full_disk_are_one_line_with_the_path():
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/config.json")
    assert "(runs/a/config.json: No space left on device)" in command_line.plain_message(full)
    temporary = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "TMPDIR" in command_line.plain_message(temporary)
    assert command_line.plain_message(FileNotFoundError(errno.ENOENT, "no such file")) is None


BACKGROUND = """
import threading
from imta_jax.errors import StorageError
from imta_jax.runtime.background_errors import hold_background_errors
from imta_jax.runtime.command_line import exit_with_error

def fail():
    raise RuntimeError("Event loop is closed")

hold_background_errors()
for _ in range(30):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
exit_with_error(ERROR, show_traceback=False)
"""


def stderr_after(error):
    command = [sys.executable, "-c", BACKGROUND.replace("ERROR", error)]
    done = subprocess.run(command, cwd=tiny_run.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


def test_errors_of_other_threads_are_printed_only_with_a_bug():
    plain = stderr_after('StorageError(28, "the disk is full")')
    assert len(plain.splitlines()) == 2 and "the disk is full" in plain
    bug = stderr_after('ValueError("a bug")')
    assert bug.count("Event loop is closed") >= 20
    assert bug.rstrip().endswith("ValueError: a bug")


def test_a_loss_that_is_not_finite_is_a_user_error():
    assert issubclass(NonFiniteLossError, UserError)


def test_the_launcher_exits_with_status_1_and_a_traceback_on_request(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    arguments = ["--config=configs/quickstart.py", f"--workdir={tmp_path}/run", "--mode=evalute"]
    launches = [(forked.LAUNCH, *arguments, f"--traceback={shown}") for shown in (False, True)]
    for done, traceback in zip(forked.run(*launches), (False, True), strict=True):
        assert done.returncode == 1
        # JAX logs it for each missing device.
        assert "Unable to initialize backend" not in done.stderr
        assert ("Traceback" in done.stderr) == traceback and "unknown mode 'evalute'" in done.stderr
        assert traceback or done.stderr.startswith("launch.py: error: unknown mode 'evalute'; ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("configs/quickstart.py:nope", "unknown preset 'nope'; valid, the closest first: paper"),
        ("configs/studies/ablation.py:nope", "unknown preset 'nope'; valid: quickstart"),
        ("configs/nofile.py", "no such file; config files in that folder: configs/cifar10.py"),
        ("x" * 300, "valid, the closest first: "),
        (f"{'x' * 300}.py", "no such file"),
        ("cifar1000", "unknown config 'cifar1000'; valid, the closest first: cifar100, cifar10"),
        ("cifar100:nope", "unknown preset 'nope'; valid, the closest first: paper"),
    ],
)
def test_a_missing_config_is_a_one_line_error(config, message, monkeypatch):
    monkeypatch.chdir(tiny_run.ROOT)
    for argv in (["launch.py", f"--config={config}"], ["launch.py", "--config", config]):
        with pytest.raises(SystemExit) as ended:
            command_line.parse_flags(argv)
        assert message in ended.value.code
        assert "\n" not in ended.value.code


def test_a_file_of_flags_may_name_a_shipped_config(tmp_path):
    (tmp_path / "flags").write_text("# a comment\n--config=quickstart:nope\n--mode=all\n")
    argv = command_line.with_flag_files(["launch.py", f"--flagfile={tmp_path}/flags", "--x=1"])
    assert argv == ["launch.py", "--config=quickstart:nope", "--mode=all", "--x=1"]
    with pytest.raises(SystemExit, match="unknown preset 'nope'"):
        command_line.parse_flags(argv)


@pytest.mark.parametrize("arguments", [["--flagfile=no"], ["--flagfile=."], ["--flagfile"]])
def test_an_unreadable_file_of_flags_is_a_one_line_error(arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for argv in (arguments, ["--flagfile=bytes"]):
        with pytest.raises(SystemExit) as ended:
            command_line.with_flag_files(["launch.py", *argv])
        assert ended.value.code.startswith("--flagfile: ") and "\n" not in ended.value.code


@pytest.mark.parametrize("name", ["quickstart", "studies/ablation"])
def test_a_shipped_config_is_found_by_its_name(name):
    file = str(tiny_run.ROOT / "configs" / f"{name}.py")
    for preset in ("", ":published"):
        for value in ([f"--config={name}{preset}"], ["--config", f"{name}{preset}"]):
            actual = command_line._with_config_files(
                ["launch.py", *value, "config=x", "--mode=all"]
            )
            assert "=".join(actual[1:-2]) == f"--config={file}{preset}"
            assert actual[-2:] == ["config=x", "--mode=all"]


def test_an_unknown_command_is_a_one_line_error(tmp_path):
    done = run_console_script(tmp_path, "exprot", "run", "folder")
    assert done.returncode == 1 and "'exprot'; valid, the closest first: export," in done.stderr


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_every_command_has_help(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["imta-jax", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out


CONSOLE_SCRIPT = """
import sys
sys.path = [folder for folder in sys.path if folder not in ("", ROOT)]
sys.argv[0] = "imta-jax"
from MODULE import FUNCTION
FUNCTION()
"""


def run_console_script(folder, *arguments):
    """Runs `imta-jax` in `folder` as if installed: the repository's root is not on `sys.path`."""
    packages = folder / "site-packages"
    packages.mkdir()
    (packages / "imta_jax").symlink_to(tiny_run.ROOT / "imta_jax")
    project = tomllib.loads((tiny_run.ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["imta-jax"].split(":")
    program = CONSOLE_SCRIPT.replace("ROOT", repr(str(tiny_run.ROOT)))
    program = program.replace("MODULE", module).replace("FUNCTION", function)
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )


def test_the_console_script_finds_the_configs_of_a_repository(tmp_path):
    config = f"--config={tiny_run.ROOT}/configs/quickstart.py:nope"
    done = run_console_script(tmp_path, config, "--workdir=run")
    assert done.returncode == 1 and "ModuleNotFoundError" not in done.stderr, done.stderr
    assert "unknown preset 'nope'; valid, the closest first: paper" in done.stderr


def test_an_import_error_of_a_config_file_is_shown(tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_module")
    done = run_console_script(tmp_path, "--config=mine.py:paper", "--workdir=run")
    assert done.returncode == 1 and "No module named 'no_such_module'" in done.stderr


def test_a_command_finds_components_of_the_working_directory(tmp_path):
    (tmp_path / "mine.py").write_text("def make_network(options, **arguments): 1 / 0")
    done = run_console_script(tmp_path, "models", "mine:make_network", "--image=16x16x3")
    assert "no module 'mine'" not in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_closed_pipe_ends_a_command_without_a_traceback():
    program = (
        "from imta_jax.runtime.interrupts import interrupts_reported\n"
        "with interrupts_reported('imta-jax models'): print('x' * 1_000_000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 1


def test_a_missing_flag_is_named_with_an_example(tmp_path):
    done = run_console_script(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "for example --config=quickstart" in done.stderr
    assert "for example --workdir=runs/quickstart" in done.stderr


@pytest.mark.parametrize(
    ("file", "folder"),
    [("a/configs/b.py", "a"), ("a/configs/studies/b.py", "a"), ("a/b.py", "a")],
)
def test_the_folder_of_configs_is_added_to_the_path_once(file, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    for _ in range(2):
        command_line._make_configs_importable(["imta-jax", f"--config={file}:paper"])
    # The working directory at the end is for components that a dotted path names.
    assert sys.path == [str(tmp_path / folder), "/elsewhere", str(tmp_path)]
