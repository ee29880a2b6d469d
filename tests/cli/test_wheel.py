"""The wheel: installed into a folder, it trains the quickstart without a clone and TensorFlow."""

import os
import shutil
import subprocess
import sys

import pytest
import tiny_run

SOURCES = ("imta_jax", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md")
SHORT = [
    "--config.data.validation_examples=7000",
    "--config.model.num_exits=2",
    *("--config.phase_one.total_epochs=1", "--config.phase_two.total_epochs=1"),
    "--compilation_cache=",
]


def run(command, folder, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package and its console command; TensorFlow cannot be imported there."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*SOURCES, "LICENSE"):
        if (tiny_run.ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
            shutil.copytree(tiny_run.ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(tiny_run.ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-index"]
    run([*pip, "wheel", *options, "--no-build-isolation", "-w", folder, source], folder)
    (wheel,) = folder.glob("*.whl")
    run([*pip, "install", *options, "--target", folder / "packages", wheel], folder)
    for name in ("tensorflow", "tensorflow_datasets"):
        (folder / "packages" / f"{name}.py").write_text("raise ImportError('not installed')")
    return folder / "packages"


def imta_jax(installed, folder, *arguments):
    """Runs the console command in `folder`, where no clone is on the path."""
    command = [sys.executable, installed / "bin" / "imta-jax", *arguments]
    variables = {"PYTHONPATH": str(installed), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return run(command, folder, XLA_FLAGS="", **variables)


def test_wheel_trains_the_quickstart_by_its_name(installed, tmp_path):
    run_flags = ["--config=quickstart:published", "--workdir=run", *SHORT]
    described = imta_jax(installed, tmp_path, *run_flags, "--mode=doctor")
    assert "fashion_mnist_small" in described and not (tmp_path / "run").exists()
    log = imta_jax(installed, tmp_path, *run_flags)
    assert "evaluation: test top-1 per exit" in log
    assert (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_wheel_has_the_commands_and_all_configs(installed, tmp_path):
    assert "multiply-adds" in imta_jax(installed, tmp_path, "models", "cifar_4_exits")
    program = """if True:
        from imta_jax import shipped_config
        shipped_config("studies/ablation")  # imports other configs
        print(shipped_config("cifar100:published").phase_one.nesterov)
    """
    printed = run([sys.executable, "-c", program], tmp_path, PYTHONPATH=str(installed))
    assert printed.strip() == "False"
    configs = (tiny_run.ROOT / "configs").rglob("*.py")
    copies = installed / "imta_jax" / "shipped" / "configs"
    for file in configs:
        copy = copies / file.relative_to(tiny_run.ROOT / "configs")
        assert copy.read_text() == file.read_text()
