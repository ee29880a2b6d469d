"""A run with own data, network, loss and exit rule, through the command line, in processes."""

import json
import shutil
import subprocess
import sys

import forked
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
sys.path[:0] = sys.argv[2:]
from imta_jax.training import load_classifier
classifier, meta = load_classifier(sys.argv[1])
print(type(classifier.heads).__name__, type(classifier.backbone).__name__)
"""
EXPORT = """
import sys
sys.path.insert(0, sys.argv.pop())
from imta_jax.inference.export.run_export import main
main()
"""
DESCRIBE = "from imta_jax.inference.command import main; main()"
PHASES = ("phase_one", "phase_two")
# A changed flag and the end of its error message.
INVALID = {
    "--config.model.backbone=my_package.net:make_bakbone": "first: make_backbone",
    "--config.phase_one.objective_options.gama=2": "'gama'; valid, the closest first: gamma",
    "--config.model.options.widht=(4,8)": "'widht'; valid, the closest first: widths",
    "--config.evaluation.exit_rule=entropi": "first: entropy",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the package, data and a run that was launched there."""
    folder = own_package.write_package(tmp_path_factory.mktemp("own"))
    tiny_run.write_dataset(folder / "data.npz")
    command = tiny_run.launch_command(folder / "data.npz", folder / "run", folder / "cache")
    # The package is found in the working directory alone.
    command["env"].pop("PYTHONPATH", None)
    command["args"] = [sys.executable, str(tiny_run.ROOT / "launch.py"), *flags(folder)]
    result = subprocess.run(**command | {"cwd": folder}, capture_output=True)
    assert result.returncode == 0, result.stderr
    return folder


def flags(folder, *more):
    """The flags of the launch, without those of the tiny network."""
    command = tiny_run.launch_command(folder / "data.npz", folder / "run", folder / "cache")
    network = tuple(f"--config.model.{name}=" for name in tiny_run.NETWORK)
    kept = [flag for flag in command["args"][3:] if not flag.startswith(network)]
    return [f"--config={tiny_run.ROOT}/configs/quickstart.py", *kept, *COMPONENTS, *more]


@pytest.fixture(scope="module")
def outcomes(folder):
    """The results of other processes, by name. None of them has the folder on `sys.path`."""
    run, calls = folder / "run", {}
    for phase in PHASES:
        calls["load", phase] = (LOAD, run / phase, folder)
        calls["load without the package", phase] = (LOAD, run / phase)
    for name, changes in {
        "other heads": {"return BoostedHeads(": "return IndependentHeads("},
        "other channels": {"inputs = (4, *": "inputs = (5, *", "nels, 4": "nels, 5"},
        "other activation": {"nnx.relu(self.blocks": "nnx.gelu(self.blocks"},
    }.items():
        changed = shutil.copytree(folder / "my_package", folder / name / "my_package")
        source = (changed / "net.py").read_text()
        for old, new in changes.items():
            source = source.replace(old, new)
        (changed / "net.py").write_text(source)
        calls[name] = (LOAD, run / "phase_one", folder / name)
    calls["export"] = (EXPORT, run, folder / "export", "--platforms=cpu", folder)
    calls["describe"] = (DESCRIBE, folder / "export")
    for flag in INVALID:
        rejected = f"--workdir={folder / 'rejected'}"
        calls[flag] = (forked.LAUNCH, *flags(folder, flag, rejected))
    calls["doctor"] = (forked.LAUNCH, *flags(folder, "--mode=doctor"))
    return dict(zip(calls, forked.run(*calls.values(), folder=folder), strict=True))


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


@pytest.mark.parametrize("phase", PHASES)
def test_another_process_loads_exactly_this_network_or_names_what_is_missing(outcomes, phase):
    loaded, refused = outcomes["load", phase], outcomes["load without the package", phase]
    assert loaded.stdout.split() == ["BoostedHeads", "ConvBackbone"], loaded.stderr
    assert refused.returncode != 0
    assert "no module 'my_package'" in refused.stderr and "PYTHONPATH" in refused.stderr


def test_changed_code_of_heads_is_refused(outcomes):
    error = outcomes["other heads"].stderr
    assert "heads_class is imta_jax" in error and "my_package.net:BoostedHeads" in error
    error = outcomes["other channels"].stderr
    assert "kernel" in error and ", 4)" in error and ", 5)" in error


def test_changed_code_with_the_same_parameters_is_refused(outcomes):
    error = outcomes["other activation"].stderr
    assert "model.backbone my_package.net:make_backbone" in error and "exit 1" in error


def test_export_runs_without_the_package(folder, outcomes):
    assert outcomes["export"].returncode == 0, outcomes["export"].stderr
    described = outcomes["describe"]
    assert described.returncode == 0 and "2 exits, 3 classes" in described.stdout, described.stderr
    manifest = json.loads((folder / "export" / "manifest.json").read_text())
    assert manifest["origin"]["model"]["backbone"] == "my_package.net:make_backbone"


@pytest.mark.parametrize("flag", INVALID)
def test_errors_are_one_line_before_anything_is_trained(folder, outcomes, flag):
    result = outcomes[flag]
    assert result.returncode == 1 and INVALID[flag] in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (folder / "rejected").exists()


def test_doctor_shows_the_stages_of_an_own_backbone(outcomes):
    assert "stage 2" in outcomes["doctor"].stdout, outcomes["doctor"].stderr
