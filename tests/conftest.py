"""Folders and compiled programs that all worker processes of a test session share."""

import pytest
import tiny_run
from filelock import FileLock

from imta_jax.runtime.registry import BACKBONES, EXIT_RULES, HEADS, OBJECTIVES, SOURCES


@pytest.fixture(scope="module")
def restored_registries():
    """Components that a test file registers are removed at its end."""
    yield
    for registry in (BACKBONES, HEADS, OBJECTIVES, EXIT_RULES, SOURCES):
        for name in list(registry._components):
            if not registry.is_built_in(name):
                del registry._components[name]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """One folder for the worker processes of this session."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session")
def build_once(shared_folder):
    """A function that makes a folder in the first process that asks for it. The others wait.

    `build_once(name, write)` calls `write(folder)` for a new folder and returns the folder.
    """

    def build(name, write):
        folder, done = shared_folder / name, shared_folder / f"{name}.done"
        with FileLock(shared_folder / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                write(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def source(build_once):
    """The tiny dataset: an .npz that `config.data.source` may name."""
    folder = build_once("data", lambda folder: tiny_run.write_dataset(folder / "thirds.npz"))
    return folder / "thirds.npz"


@pytest.fixture
def no_report(monkeypatch):
    """Runs write no report, which takes as long as all their other steps after training."""
    monkeypatch.setattr("imta_jax.report.write_report", lambda workdir: None)


@pytest.fixture(scope="module")
def compilation_cache(shared_folder):
    """Programs that a test file compiles are read by later files with the same programs."""
    with tiny_run.compiled_once(shared_folder / "compiled"):
        yield
