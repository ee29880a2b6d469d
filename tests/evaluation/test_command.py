"""The command `python -m imta_jax.evaluation`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from limited_imports import import_only
from sample_logits import overconfident_split

from imta_jax.evaluation import command
from imta_jax.evaluation.methods.risk_control import GUARANTEES, risk_controlled_thresholds


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Logits as other frameworks store them: float64 with int64 labels."""
    folder = tmp_path_factory.mktemp("logits")
    for seed, name in enumerate(("validation", "test")):
        logits, labels = overconfident_split(seed, 100)
        np.savez(folder / f"{name}.npz", logits=logits.astype(float), labels=labels.astype(int))
    return [str(folder / f"{name}.npz") for name in ("validation", "test")]


def test_command_prints_and_writes_without_importing_jax(files, tmp_path):
    out = tmp_path / "comparison.json"
    program = (
        "import sys, runpy; runpy.run_module('imta_jax.evaluation', run_name='__main__');"
        "assert not {'jax', 'tensorflow', 'pandas', 'scipy.stats'} & set(sys.modules)"
    )
    arguments = [*files, "--costs=10,25,45,70", "--budgets=0.3,0.5", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["full_cost"] == 70
    assert record["images"] == {"validation": 100, "test": 100}
    budget_methods = {"sweep", "envelope", "temperature", "optimised", "ensemble", "gate"}
    methods = budget_methods | {"patience", *GUARANTEES}
    assert {row["method"] for row in record["points"]} == methods
    for row in record["points"]:
        assert row["asked"] in done.stdout
        assert f"{row['top1']:.2f}" in done.stdout


def test_console_command_needs_only_the_packages_that_the_documentation_names(files, tmp_path):
    packages = {"imta_jax", "numpy", "scipy"}
    program = import_only(packages) + "from imta_jax.cli.commands import main; main()"
    arguments = ["evaluation", *files, "--costs=10,25,45,70", "--budgets=0.5"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert "budget 50%" in done.stdout, done.stderr
    table = done.stdout.splitlines()[:4]
    assert table[0].startswith("method") and set(table[1]) == {"-", " "}
    assert len(set(map(len, table))) == 1


def test_default_budgets_are_at_least_the_cost_of_the_first_exit(files, capsys):
    command.main([*files, "--costs=10,25,45,70"])
    printed = capsys.readouterr().out
    assert "budget 15%" in printed
    assert "budget 10%" not in printed


@pytest.mark.parametrize("number", [58, 59])
def test_fewest_images_are_those_that_can_certify_a_tolerance(files, tmp_path, capsys, number):
    confidence, correct = np.full((2, number), 0.9, np.float32), np.ones((2, number), bool)
    thresholds = risk_controlled_thresholds(confidence, correct, [5.0], guarantee="clipped")
    certified = thresholds[0, 0] < 0.9
    assert certified == (number == 59)
    logits, labels = overconfident_split(0, number)
    np.savez(tmp_path / "few.npz", logits=logits, labels=labels)
    arguments = [f"{tmp_path}/few.npz", files[1], "--costs=1,2,3,4", "--budgets=0.5"]
    if certified:
        command.main(arguments)
        return
    with pytest.raises(SystemExit):
        command.main(arguments)
    error = capsys.readouterr().err
    assert "few.npz" in error and "58" in error and "59" in error and "--tolerance" in error


@pytest.mark.parametrize(
    ("first", "options", "named"),
    [
        ("missing.npz", ["--costs=1,2,3,4"], "missing.npz"),
        (None, ["--costs=1,2,three,4"], "--costs=1,2,three,4"),
        (None, ["--costs=1,2,3"], "--costs=1,2,3 has 3 numbers"),
        (None, ["--costs=4,3,2,1"], "--costs=4,3,2,1"),
        (None, ["--costs=5,5,5,5"], "--costs=5,5,5,5"),
        (None, ["--costs=0,1,2,nan"], "--costs=0,1,2,nan"),
        (None, ["--costs=1,2,3,4", "--budgets=50"], "budgets=[50.0]"),
    ],
)
def test_user_errors_exit_with_code_2_and_name_the_value(files, capsys, first, options, named):
    with pytest.raises(SystemExit) as exit_:
        command.main([first or files[0], files[1], *options])
    assert exit_.value.code == 2
    assert named in capsys.readouterr().err


def test_files_of_another_format_and_swapped_axes_are_named(files, tmp_path, capsys):
    (tmp_path / "logits.csv").write_text("1,0.5,0.25\n")
    scores = np.zeros((100, 4), np.float32)
    np.savez(tmp_path / "swapped.npz", scores=scores, correct=scores > 1)
    for name, named in (
        ("logits.csv", "not an .npz archive"),
        ("swapped.npz", "100 exits (shape (100, 4)"),
    ):
        with pytest.raises(SystemExit):
            command.main([str(tmp_path / name)] * 2 + ["--costs=1,2,3,4"])
        error = capsys.readouterr().err
        assert name in error and named in error and "pickle" not in error


def test_levels_are_printed_with_all_digits(files, capsys):
    command.main(
        [*files, "--costs=10,25,45,70", "--budgets=0.5", "--confidence=0.999", "--tolerance=50"]
    )
    assert "99.9% intervals" in capsys.readouterr().out


def written(files, out, *options):
    command.main([*files, "--costs=10,25,45,70", "--budgets=0.5", f"--out={out}", *options])
    return json.loads(out.read_text())


def test_tolerances_and_confidence_level_are_those_of_the_guarantees(files, tmp_path):
    record = written(files, tmp_path / "out.json", "--tolerance=3,10", "--confidence=0.8")
    assert record["confidence_level"] == 0.8
    actual = {p["tolerance_points"] for p in record["points"] if p["method"] == "clipped"}
    assert actual == {3.0, 10.0}
    # The last exit lets every image leave.
    assert all(p["thresholds"][-1] is None for p in record["points"] if p["method"] == "sweep")


@pytest.mark.parametrize("option", ["--tolerance=0", "--tolerance=x", "--confidence=1"])
def test_invalid_tolerance_or_confidence_exits_with_code_2(files, capsys, option):
    with pytest.raises(SystemExit) as exit_:
        command.main([*files, "--costs=10,25,45,70", option])
    name, value = option.split("=")
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and name in error and value in error


@pytest.mark.parametrize("method", ["sweep", "temperature"])
def test_printed_numpy_code_takes_the_exits_of_the_point(files, tmp_path, capsys, method):
    out = tmp_path / "out.json"
    record = written(files, out, "--format=numpy", f"--method={method}")
    scope = {}
    exec(capsys.readouterr().out, scope)
    (point,) = (p for p in record["points"] if p["method"] == method)
    logits = np.load(files[1])["logits"].astype(np.float32)
    left = np.array([scope["leaves"](i, exit_logits) for i, exit_logits in enumerate(logits)])
    fractions = np.bincount(left.argmax(axis=0), minlength=4) / left.shape[1]
    np.testing.assert_allclose(fractions, point["exit_fractions"])


def test_printed_torch_code_is_valid_and_needs_one_point(files, capsys):
    arguments = [*files, "--costs=10,25,45,70", "--format=torch"]
    command.main([*arguments, "--budgets=0.5"])
    compile(capsys.readouterr().out, "rule.py", "exec")
    with pytest.raises(SystemExit):
        command.main([*arguments, "--budgets=0.5,0.6"])
    error = capsys.readouterr().err
    assert "--budgets" in error and "budget 50%; budget 60%" in error


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--method=net"], ("--method=net", "--format")),
        (["--method=optimised"], ("--method=optimized", "--format")),
        (["--format=numpy", "--method=net", "--budgets=0.5"], ("--budgets=0.5", "--method=net")),
        (["--format=numpy", "--tolerance=5"], ("--tolerance=5", "--method=sweep")),
        (["--format=numpy", "--confidence=0.9"], ("--confidence=0.9", "--method=sweep")),
        (["--format=numpy", "--method=expectation", "--confidence=0.9"], ("--confidence=0.9",)),
        (["--method=optimal"], ("--method", "'optimal'", "first: optimized")),
    ],
)
def test_options_without_effect_are_rejected(files, capsys, options, named):
    with pytest.raises(SystemExit) as exit_:
        command.main([*files, "--costs=10,25,45,70", *options])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and all(name in error for name in named)


@pytest.mark.parametrize("name", ["optimized", "optimised", "envelope"])
def test_code_is_printed_for_the_names_of_the_table_and_of_result_files(files, capsys, name):
    command.main([*files, "--costs=10,25,45,70", "--budgets=0.5"])
    shown = name.replace("optimised", "optimized")
    assert f"\n{shown} " in capsys.readouterr().out
    options = ["--costs=10,25,45,70", "--budgets=0.5", "--format=numpy", f"--method={name}"]
    command.main([*files, *options])
    assert f"confidence: {shown}, budget 50%" in capsys.readouterr().out


def test_code_without_a_guarantee_needs_few_images(files, tmp_path, capsys):
    logits, labels = overconfident_split(0, 20)
    np.savez(tmp_path / "few.npz", logits=logits, labels=labels)
    options = ["--costs=10,25,45,70", "--budgets=0.5", "--format=numpy"]
    command.main([f"{tmp_path}/few.npz", files[1], *options])
    assert "THRESHOLDS" in capsys.readouterr().out


def test_equal_files_are_reported(files, tmp_path, capsys):
    copy = tmp_path / "copy.npz"
    shutil.copy(files[0], copy)
    command.main([files[0], str(copy), "--costs=10,25,45,70", "--budgets=0.5"])
    error = capsys.readouterr().err
    assert "warning" in error and "validation.npz" in error and "copy.npz" in error


def test_outputs_of_a_sigmoid_are_reported(files, tmp_path, capsys):
    with np.load(files[1]) as arrays:
        logits = np.concatenate([arrays["logits"][:3], 1 / (1 + np.exp(-arrays["logits"][3:]))])
        np.savez(tmp_path / "sigmoid.npz", logits=logits, labels=arrays["labels"])
    path = str(tmp_path / "sigmoid.npz")
    command.main([files[0], path, "--costs=10,25,45,70", "--budgets=0.5"])
    error = capsys.readouterr().err
    assert "sigmoid.npz: all logits of exits 4 are in 0..1" in error
    command.main([path, path, "--costs=10,25,45,70", "--budgets=0.5"])
    assert capsys.readouterr().err.count("are in 0..1") == 1


def test_costs_that_differ_between_the_splits_are_reported(files, tmp_path, capsys):
    command.main([*files, "--costs=10,25,45,70", "--budgets=0.5"])
    assert "warning" not in capsys.readouterr().err
    with np.load(files[1]) as arrays:
        flat = {"logits": arrays["logits"] / 10, "labels": arrays["labels"]}
    np.savez(tmp_path / "unsure.npz", **flat)
    arguments = [files[0], str(tmp_path / "unsure.npz"), "--costs=10,25,45,70", "--budgets=0.5"]
    command.main(arguments)
    assert "validation images cost" in capsys.readouterr().err
