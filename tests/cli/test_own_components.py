"""A run with own data, network, loss and exit rule, through the command line, in processes."""

import json
import os
import subprocess
import sys

import own_package
import pytest
import tiny_run

COMPONENTS = [
    "--config.data.source=my_package.net:make_source",
    "--config.data.source_options.path=data.npz",
    "--config.model.backbone=my_package.net:make_backbone",
    "--config.model.options.widths=(4,8)",
    "--config.model.heads=my_package.net:make_heads",
    "--config.phase_one.objective=my_package.net:focal_loss",
    "--config.phase_one.objective_options.gamma=1.5",
    "--config.phase_two.transfer=my_package.net:make_heads",
    "--config.phase_two.objective=my_package.net:focal_loss",
    "--config.evaluation.exit_rule=my_package.net:summed_probability",
    "--config.evaluation.exit_rule_options.factor=2.5",
    "--config.evaluation.reported_budgets=(0.8,)",
]

LOAD = """
import sys
from imta_jax.training import load_classifier
classifier, meta = load_classifier(sys.argv[1])
print(type(classifier.heads).__name__, type(classifier.backbone).__name__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the package, data and a run that was launched there."""
    folder = own_package.write_package(tmp_path_factory.mktemp("own"))
    tiny_run.write_dataset(folder / "data.npz")
    result = launch(folder, *COMPONENTS)
    assert result.returncode == 0, result.stderr
    return folder


def launch(folder, *more):
    command = tiny_run.launch_command(folder / "data.npz", folder / "run", folder / "cache", *more)
    network = [f"--config.model.{name}=" for name in tiny_run.NETWORK]
    command["args"] = [
        argument.replace("=configs/", f"={tiny_run.ROOT}/configs/")
        for argument in command["args"]
        if not argument.startswith(tuple(network))
    ]
    command["args"][1] = str(tiny_run.ROOT / "launch.py")
    # The package is found in the working directory alone.
    command["env"].pop("PYTHONPATH", None)
    return subprocess.run(**command | {"cwd": folder}, capture_output=True)


def python(folder, *arguments, importable=True):
    """Runs Python where the package can be imported, or cannot."""
    paths = [str(tiny_run.ROOT), *([str(folder)] if importable else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder.parent,
        env=environment,
        text=True,
        capture_output=True,
    )


def test_results_record_the_rule_and_checkpoints_the_network(folder):
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["exit_rule"]["name"] == "my_package.net:summed_probability"
    assert results["exit_rule"]["options"] == {"factor": 2.5}
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["model"]["options"] == {"widths": [4, 8]}
    assert config["phase_one"]["objective_options"] == {"gamma": 1.5}
    assert config["data"]["source_options"] == {"path": "data.npz"}
    assert results["dataset"]["name"] == "own_thirds"
    dataset = json.loads((folder / "run" / "dataset.json").read_text())
    assert dataset["source"] == "my_package.net:make_source"
    assert dataset["class_names"] == ["low", "middle", "high"]


@pytest.mark.parametrize("phase", ["phase_one", "phase_two"])
def test_another_process_loads_exactly_this_network_or_names_what_is_missing(folder, phase):
    loaded = python(folder, "-c", LOAD, folder / "run" / phase)
    assert loaded.stdout.split() == ["BoostedHeads", "ConvBackbone"], loaded.stderr
    refused = python(folder, "-c", LOAD, folder / "run" / phase, importable=False)
    assert refused.returncode != 0
    assert "no module 'my_package'" in refused.stderr and "PYTHONPATH" in refused.stderr


def test_changed_code_of_heads_is_refused(folder):
    path = folder / "my_package" / "net.py"
    source = path.read_text()
    try:
        path.write_text(source.replace("return BoostedHeads(", "return IndependentHeads("))
        refused = python(folder, "-c", LOAD, folder / "run" / "phase_one")
        assert "heads_class is imta_jax" in refused.stderr
        assert "my_package.net:BoostedHeads" in refused.stderr
        path.write_text(
            source.replace("inputs = (4, *", "inputs = (5, *").replace("nels, 4", "nels, 5")
        )
        refused = python(folder, "-c", LOAD, folder / "run" / "phase_one")
        assert "parameters is" in refused.stderr
    finally:
        path.write_text(source)


def test_export_runs_without_the_package(folder):
    exported = folder / "export"
    made = python(
        folder, "-m", "imta_jax.inference.export", folder / "run", exported, "--platforms=cpu"
    )
    assert made.returncode == 0, made.stderr
    described = python(folder, "-m", "imta_jax.inference", exported, importable=False)
    assert described.returncode == 0 and "2 exits, 3 classes" in described.stdout, described.stderr
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["origin"]["model"]["backbone"] == "my_package.net:make_backbone"


def test_errors_are_one_line_before_anything_is_trained(folder):
    for flag, expected in (
        ("--config.model.backbone=my_package.net:make_bakbone", "first: make_backbone"),
        ("--config.phase_one.objective_options.gama=2", "'gama'; valid, the closest first: gamma"),
        ("--config.evaluation.exit_rule=entropi", "first: entropy"),
    ):
        workdir = f"--workdir={folder / 'rejected'}"
        result = launch(folder, *COMPONENTS, flag, workdir)
        assert result.returncode == 1 and expected in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and not (folder / "rejected").exists()


def test_doctor_shows_the_stages_of_an_own_backbone(folder):
    result = launch(folder, *COMPONENTS, "--mode=doctor")
    assert "stage 2" in result.stdout, result.stderr
