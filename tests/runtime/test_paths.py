"""Paths that users give: expanded once, and rejected if they name no local folder."""

from pathlib import Path

import pytest
import tiny_run

from imta_jax.cli.run import run
from imta_jax.runtime.paths import local_folder
from imta_jax.studies import run_study


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "home"),
        ("~/runs/t", "home/runs/t"),
        ("runs/t", "runs/t"),
        ("./~/t", "~/t"),
        (Path("~/t"), "home/t"),
        ("with space/ü", "with space/ü"),
    ],
)
def test_a_local_folder_is_absolute_with_the_home_folder_expanded(given, expected, tmp_path):
    assert local_folder("--workdir", given) == tmp_path / expected


BAD = ["", "  ", "gs://bucket/run", "s3://bucket/run", "GS://bucket", Path("gs://bucket/run")]


@pytest.mark.parametrize("given", [*BAD, "~no-such-user/run"])
def test_other_paths_are_rejected_and_create_nothing(given, tmp_path):
    config = tiny_run.tiny_config("unused.npz")
    for mode in ("all", "doctor", "data", "report", "time"):
        with pytest.raises(ValueError, match=r"--workdir"):
            run(config, given, mode)
    with pytest.raises(ValueError, match=r"--workdir"):
        run_study({"variants": {}}, given)
    assert not list(tmp_path.iterdir())


def test_a_run_in_the_home_folder_creates_no_folder_named_tilde(tmp_path):
    source = tiny_run.write_dataset(tmp_path / "thirds.npz")
    config = tiny_run.tiny_config(source, phase_one__total_epochs=1, phase_two__total_epochs=0)
    run(config, "~/runs/t")
    assert (tmp_path / "home/runs/t/report/index.html").exists()
    assert not (tmp_path / "~").exists()
