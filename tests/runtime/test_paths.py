"""Paths of users: expanded once, and rejected if they are not local folders."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import sample_logits
import tiny_run

from configs import quickstart
from imta_jax.cli.run import run
from imta_jax.config import RunConfig
from imta_jax.data import load_dataset
from imta_jax.data.sources.storage import absolute
from imta_jax.evaluation import command as evaluation_command
from imta_jax.evaluation import save_predictions
from imta_jax.inference import command as inference_command
from imta_jax.inference.export import run_export
from imta_jax.inference.image_files import find_image_files
from imta_jax.runtime.paths import local_path, reason_missing
from imta_jax.studies import __main__ as studies_command
from imta_jax.studies import run_study


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~", "home"),
        ("~/runs/t", "home/runs/t"),
        ("runs/t", "runs/t"),
        ("./~/t", "~/t"),
        (Path("~/t"), "home/t"),
        ("with space/ü", "with space/ü"),
    ],
)
def test_a_local_path_is_absolute_with_the_home_folder_expanded(path, expected, tmp_path):
    assert local_path("--workdir", path) == tmp_path / expected


def test_too_long_and_forbidden_paths_are_rejected_with_their_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--workdir=x{300} .*255"):
        local_path("--workdir", "x" * 300)

    def lstat(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(PermissionError, match=r"--workdir=runs/t .*chmod"):
        local_path("--workdir", "runs/t")


@pytest.mark.parametrize("address", ["file:///a/b c", "file://localhost/a/b c", "file:/a/b c"])
def test_the_address_of_a_local_file_is_its_path(address):
    assert local_path("--workdir", address) == Path("/a/b c")
    assert absolute(address) == "/a/b c"


@pytest.mark.parametrize("address", ["file://host/a", "file://a", "file://"])
def test_the_address_of_a_file_on_another_host_is_rejected(address):
    for read in (lambda path: local_path("--workdir", path), absolute):
        with pytest.raises(ValueError, match=rf"^{address} .*file:///PATH"):
            read(address)


def test_images_can_be_given_as_addresses(tmp_path):
    (tmp_path / "a.png").touch()
    assert find_image_files([f"file://{tmp_path}/a.png"]) == [tmp_path / "a.png"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in {
        "broken/a": "broken is a broken link to 'nowhere'",
        "loop": "loop is a circular link to 'loop'",
        "a": "a does not exist",
    }.items():
        assert reason_missing(tmp_path / path) == f"{tmp_path}/{reason}"


NOT_LOCAL = ["", "  ", "gs://bucket/run", "s3://bucket/run", "GS://bucket", Path("gs://bucket/run")]


@pytest.mark.parametrize("path", [*NOT_LOCAL, "~no-such-user/run"])
def test_other_paths_are_rejected_and_create_nothing(path, tmp_path):
    config = tiny_run.tiny_config("unused.npz")
    for mode in ("all", "doctor", "data", "report", "time"):
        with pytest.raises(ValueError, match="--workdir"):
            run(config, path, mode)
    with pytest.raises(ValueError, match="--workdir"):
        run_study({"variants": {}}, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compilation_cache")
def test_a_run_in_the_home_folder_creates_no_folder_named_tilde(source, tmp_path):
    config = tiny_run.tiny_config(source, phase_one__total_epochs=1, phase_two__total_epochs=0)
    run(config, "~/runs/t")
    assert (tmp_path / "home/runs/t/report/index.html").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("field", ["source", "data_dir"])
def test_config_fields_reject_the_home_of_an_unknown_user(field):
    values = {"source": "mnist", "download": False, field: "~no-such-user/a.npz"}
    data = RunConfig.from_mapping(quickstart.get_config()).data
    with pytest.raises(ValueError, match=rf"config\.data\.{field}=~no-such-user"):
        load_dataset(dataclasses.replace(data, **values))


# Each command with its arguments; PATH is the path in question.
COMMANDS = {
    "evaluation.--out": (evaluation_command, ["v.npz", "t.npz", "--costs=1,2", "--out=PATH"]),
    "evaluation.validation": (evaluation_command, ["PATH", "t.npz", "--costs=1,2"]),
    "studies.--out": (studies_command, ["--out=PATH"]),
    "studies.STUDY.json": (studies_command, ["PATH", "--out=report"]),
    "export.workdir": (run_export, ["PATH", "export"]),
    "export.folder": (run_export, ["run", "PATH"]),
    "inference.folder": (inference_command, ["PATH"]),
}


def status_of(command, arguments):
    try:
        return command.main(arguments)
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("path", ["", "gs://bucket/file", "~no-such-user/file"])
def test_commands_reject_other_paths_and_create_nothing(name, path, tmp_path, capsys):
    command, arguments = COMMANDS[name]
    assert status_of(command, [argument.replace("PATH", path) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert f"{path} " in message and name.partition(".")[2] in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["evaluation.validation", "export.workdir", "inference.folder"])
def test_commands_read_from_the_home_folder(name, tmp_path, capsys):
    command, arguments = COMMANDS[name]
    assert status_of(command, [argument.replace("PATH", "~/none") for argument in arguments]) == 2
    assert str(tmp_path / "home" / "none") in capsys.readouterr().err


def test_commands_write_to_the_home_folder(tmp_path):
    for seed, name in enumerate(("v.npz", "t.npz")):
        save_predictions(name, sample_logits.overconfident_split(seed, 100))
    costs = ",".join(map(str, sample_logits.COSTS))
    evaluation_command.main(["v.npz", "t.npz", f"--costs={costs}", "--out=~/new/methods.json"])
    assert status_of(studies_command, ["--out=~/report"]) == 0
    assert (tmp_path / "home/new/methods.json").exists()
    assert (tmp_path / "home/report/index.html").exists()
    assert not (tmp_path / "~").exists()
