"""The command `python -m imta_jax.inference`."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imta_jax.errors import InputError
from imta_jax.inference import AdaptiveClassifier, AdaptivePredictions, command, load_exported
from imta_jax.inference.command import main

CLASSES = ("ant", "bee", "cow", "dog", "eel")


def test_table_has_the_predictions(exported_folder, png_folder, images, capsys):
    expected = load_exported(exported_folder).adaptive(0.8).predict(images[:5])
    assert main([str(exported_folder), str(png_folder), "--budget=0.8"]) == 0
    heading, *rows, summary, _ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["file", "label", "confidence", "exit", "multiply-adds", "ms"]
    assert len({len(row) for row in [heading, *rows]}) == 1
    for i, row in enumerate(rows):
        file, label, confidence, exit_, macs, _ = row.split()
        assert file == str(png_folder / f"{i}.png") and label == CLASSES[expected.labels[i]]
        assert exit_ == f"{expected.exit[i] + 1}/3" and macs == f"{expected.macs[i]:,}"
        assert float(confidence) == pytest.approx(expected.confidence[i], abs=1e-3)
    assert "5 images" in summary and "budget 0.8" in summary


def test_budget_in_milliseconds_is_accepted(exported_folder, png_folder, capsys):
    options = ["--budget-ms=1e6", "--batch-size=4"]
    assert main([str(exported_folder), str(png_folder), *options]) == 0
    assert "budget 1e+06 ms" in capsys.readouterr().out


def test_json_output_has_one_line_per_image(exported_folder, png_folder, capsys):
    options = ["--json", "--batch-size=2", "--thresholds=0,0,0"]
    assert main([str(exported_folder), str(png_folder), *options]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["exit"] for row in rows] == [1] * 5 and rows[0]["label"] in CLASSES
    assert all(row["ms"] > 0 for row in rows) and "5 images" in printed.err


def test_golden_check_can_be_skipped(exported_folder, png_folder, monkeypatch, capsys):
    from imta_jax.inference.export import golden

    def fails(*_):
        raise InputError("golden images differ")

    monkeypatch.setattr(golden, "check_golden", fails)
    command = [str(exported_folder), str(png_folder), "--thresholds=0,0,0"]
    assert main(command) == 2 and "golden images differ" in capsys.readouterr().err
    assert main([*command, "--skip-golden-check"]) == 0


def test_ctrl_c_ends_in_one_line(exported_folder, png_folder, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "find_image_files", interrupt)
    assert main([str(exported_folder), str(png_folder), "--skip-golden-check"]) == 130
    assert capsys.readouterr().err.splitlines() == ["python -m imta_jax.inference: interrupted"]


def test_without_images_the_folder_is_described(exported_folder, capsys):
    assert main([str(exported_folder)]) == 0
    printed = capsys.readouterr().out
    assert "3 exits, 5 classes (ant, bee" in printed and "0.400" in printed


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_cannot_be_printed_are_replaced(
    exported_folder, png_folder, monkeypatch, encoding, options
):
    content = (png_folder / "0.png").read_bytes()
    for name in (b"caf\xe9.png", "f\u00fcr.png".encode(), "\u6f22.png".encode()):
        (png_folder / os.fsdecode(name)).write_bytes(content)
    (png_folder / os.fsdecode(b"bad\xe9.png")).write_bytes(b"not an image")
    printed = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in printed.items():
        stream = io.TextIOWrapper(buffer, encoding=encoding, write_through=True)
        monkeypatch.setattr(sys, name, stream)
    assert main([str(exported_folder), str(png_folder), "--thresholds=0,0,0", *options]) == 1
    out, err = (buffer.getvalue().decode(encoding) for buffer in printed.values())
    assert out.count(".png") == 8 and "bad" in err
    if options:
        names = [json.loads(line)["file"] for line in out.splitlines()]
        assert [Path(name).name for name in names[5:]] == [
            "caf\ufffd.png",
            "f\u00fcr.png",
            "\u6f22.png",
        ]
    else:
        expected = {"utf-8": "f\u00fcr.png", "latin-1": "f\u00fcr.png", "ascii": "f?r.png"}
        assert expected[encoding] in out


def test_class_names_with_control_characters_stay_on_one_line(classifier, export, tmp_path, capsys):
    names = ("a\nb", "\x1b[31m", "c", "d", "e")
    folder = export(classifier, tmp_path / "export", class_names=names, platforms=("cpu",))
    assert main([str(folder), "--skip-golden-check"]) == 0
    assert "5 classes (a\ufffdb, \ufffd[31m, c, d, e)" in capsys.readouterr().out


def test_image_whose_logits_are_not_finite_is_skipped(
    exported_folder, png_folder, monkeypatch, capsys
):
    def predict(self, images):
        confidence = np.where(np.arange(len(images)) == 1, np.nan, 0.5).astype(np.float32)
        zeros = np.zeros(len(images), np.int32)
        return AdaptivePredictions(zeros, zeros, confidence, zeros.astype(np.int64))

    monkeypatch.setattr(AdaptiveClassifier, "predict", predict)
    assert main([str(exported_folder), str(png_folder), "--thresholds=0,0,0", "--json"]) == 1
    printed = capsys.readouterr()
    files = [Path(json.loads(line)["file"]).name for line in printed.out.splitlines()]
    assert files == ["0.png", "2.png", "3.png", "4.png"]
    assert "1.png" in printed.err and "1 of 5 images" in printed.err


def test_unusable_file_is_skipped_and_reported(exported_folder, png_folder, capsys):
    content = (png_folder / "0.png").read_bytes()
    (png_folder / "1.png").write_bytes(content[: len(content) // 2])
    (png_folder / "2.png").write_bytes(b"not an image")
    Image.new("RGB", (20, 30)).save(png_folder / "3.png")
    assert main([str(exported_folder), str(png_folder)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    for message in ("1.png: not decoded", "2.png: not decoded", "3 of 5 images"):
        assert message in printed.err
    assert re.search(r"3\.png.*30 x 20.*16 x 16", printed.err)


@pytest.mark.parametrize(
    "options, values",
    [
        (["--budget=0.1"], ["0.1", "0.400, 0.800"]),
        (["--budget=0.5", "--thresholds=0,0,0"], ["--budget", "--thresholds"]),
        (["--budget-ms=5", "--budget=0.5"], ["--budget-ms", "--budget"]),
        (["--budget-ms=0.000001", "--batch-size=4"], ["budget_ms=1e-06"]),
        (["--thresholds=0,0"], ["thresholds", "3 exits"]),
        (["--thresholds=0,x,0"], ["--thresholds", "'x'"]),
        (["--batch-size=0"], ["--batch-size", "0"]),
        (["nowhere.png"], ["nowhere.png"]),
    ],
)
def test_invalid_argument_is_reported_in_one_line(
    exported_folder, png_folder, capsys, options, values
):
    assert main([str(exported_folder), str(png_folder), *options]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and not printed.out
    for value in values:
        assert value in printed.err


def test_exported_network_runs_without_flax_and_training_code(
    exported_folder, png_folder, tmp_path
):
    blocked = ["flax", "optax", "orbax", "tensorflow", "ml_collections"]
    blocked += ["imta_jax.training", "imta_jax.models"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from imta_jax.inference.command import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, exported_folder, "--thresholds=0,0,0", png_folder],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8 and not done.stderr
