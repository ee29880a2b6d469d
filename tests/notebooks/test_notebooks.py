"""The notebooks run from top to bottom."""

import ast
import os
from pathlib import Path

import compile_flags
import nbformat
import pytest
from nbclient import NotebookClient
from run_samples import write_run

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# Notebook -> number of figures.
FIGURES = {
    "budget_curve": 6,
    "early_exit": 4,
    "gradient_equilibrium": 3,
    "inspect_a_run": 4,
    "own_network": 3,
    "two_phases": 5,
}
MAX_FUNCTION_LINES = 10


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A compilation cache that all kernels share."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def environment(tmp_path, programs, monkeypatch):
    """The environment of the kernels: few images, one device, fast compilation, new folders."""
    for name, value in {
        "WORKDIR": str(write_run(tmp_path / "written")),
        "QUICK": "1",
        "TMPDIR": str(tmp_path),
        "XLA_FLAGS": compile_flags.COMPILE_FAST,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }.items():
        monkeypatch.setitem(os.environ, name, value)


# The kernel leaves its sockets and event loop open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", FIGURES)
def test_notebook_runs_and_draws_its_figures(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    figures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) == FIGURES[name]


def test_every_notebook_is_tested():
    assert sorted(FIGURES) == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_has_no_outputs_and_the_format_of_nbformat(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert nbformat.writes(notebook).rstrip() == text.rstrip()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [cell.id for cell in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]


@pytest.mark.parametrize("name", FIGURES)
def test_functions_of_notebooks_are_short(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    trees = [ast.parse(source.replace("%matplotlib inline", "")) for source in code]
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert all(length <= MAX_FUNCTION_LINES for length in lengths.values()), lengths
