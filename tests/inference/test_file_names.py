"""File names with control characters in the runner's output."""

import json
from pathlib import Path

import pytest

from imta_jax.inference.command import main

NAME = "a\nb\x1b[2J.png"


@pytest.fixture
def arguments(exported_folder, png_folder):
    (png_folder / NAME).write_bytes((png_folder / "0.png").read_bytes())
    return [str(exported_folder), str(png_folder), "--thresholds=0,0,0"]


def test_a_row_of_the_table_is_one_line_without_control_characters(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if ".png" in line]
    assert len(rows) == 6 and all(row.isprintable() for row in rows)
    assert any("a\ufffdb\ufffd[2J.png" in row for row in rows)


def test_json_has_the_exact_name(arguments, capsys):
    assert main([*arguments, "--json"]) == 0
    names = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert any(name.endswith(NAME) for name in names)


def test_a_skipped_file_is_named_in_one_line_without_control_characters(arguments, capsys):
    folder = Path(arguments[1])
    (folder / f"bad{NAME}").write_bytes(b"no image")
    assert main(arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped:" in line]
    assert len(lines) == 1 and lines[0].isprintable() and "neither JPEG nor PNG" in lines[0]
