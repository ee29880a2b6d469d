"""The notebooks run from top to bottom, and their stored outputs are those of one execution."""

import ast
import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
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
MAX_BYTES = 300_000
MAX_TEXT = 20_000  # longer outputs are images

_spec = importlib.util.spec_from_file_location("store_outputs", NOTEBOOKS / "store_outputs.py")
store_outputs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(store_outputs)


def code_cells(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def plain_python(source):
    """The source without IPython's commands."""
    return re.sub(r"^( *)%.*$", r"\1pass", source, flags=re.MULTILINE)


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
def test_notebook_has_the_format_of_nbformat(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert nbformat.writes(notebook).rstrip() == text.rstrip()
    assert [cell.id for cell in notebook.cells] == [f"cell-{i}" for i in range(len(notebook.cells))]


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_has_the_outputs_of_one_execution(name):
    cells = code_cells(name)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    digest = store_outputs.code_digest(notebook)
    assert notebook.metadata["executed_code"] == digest, f"run store_outputs.py {name}"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) == FIGURES[name]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    # An expression at the end of a cell has a result.
    for cell in cells:
        last = ast.parse(plain_python(cell.source)).body[-1]
        is_value = isinstance(last, ast.Expr) and not cell.source.rstrip().endswith(";")
        assert not is_value or cell.outputs or isinstance(last.value, ast.Call), cell.source


@pytest.mark.parametrize("name", FIGURES)
def test_outputs_are_small_and_have_no_path_or_address_of_a_machine(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < MAX_BYTES
    for cell in code_cells(name):
        for output in cell.outputs:
            texts = [output.get("text", ""), *output.get("data", {}).values()]
            for text in (text for text in texts if len(text) < MAX_TEXT):
                assert not re.search(r"/(tmp|home|root|work|Users|usr)/| at 0x", text), text


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_uses_no_internals_of_the_report(name):
    for cell in code_cells(name):
        for node in ast.walk(ast.parse(plain_python(cell.source))):
            modules = [alias.name for alias in getattr(node, "names", ())]
            modules.append(getattr(node, "module", None) or "")
            assert not [m for m in modules if m.startswith("imta_jax.report.") or ".report." in m]


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_has_the_badge_and_install_line_of_the_address_in_pyproject(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    committed = copy.deepcopy(notebook)
    address = store_outputs.repository_address(NOTEBOOKS.parent / "pyproject.toml")
    store_outputs.set_address(notebook, address, name)
    assert notebook == committed
    installs = [cell.source for cell in notebook.cells if "pip install" in cell.source]
    assert len(installs) == 1 and installs[0].count("pip install") == 1


ADDRESSES = {
    "https://github.com/someone/imta_jax.git": "/github/someone/imta_jax/blob/main/notebooks/",
    "https://example.org/imta_jax": None,  # Colab opens notebooks of GitHub only
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_in_pyproject_gives_the_badge_and_installs_from_there(address, tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(f'[project.urls]\nRepository = "{address}"\n')
    actual = store_outputs.repository_address(pyproject)
    notebook = nbformat.read(NOTEBOOKS / "early_exit.ipynb", as_version=4)
    for _ in range(2):  # a second time changes nothing
        store_outputs.set_address(notebook, actual, "early_exit")
    title, install = (cell.source for cell in notebook.cells[:2])
    assert f'"imta_jax[train,report] @ git+{actual}"' in install
    badge = ADDRESSES[address]
    assert title.count("colab.research.google.com/github") == (badge is not None)
    assert badge is None or f"{badge}early_exit.ipynb" in title.splitlines()[2]
    store_outputs.set_address(notebook, None, "early_exit")
    assert "colab" not in notebook.cells[0].source.split("\n\n")[1]
    assert notebook.cells[0] == nbformat.read(NOTEBOOKS / "early_exit.ipynb", 4).cells[0]


def test_one_command_writes_the_address_into_the_project_the_citation_and_the_notebooks(tmp_path):
    root = NOTEBOOKS.parent
    for name in ("pyproject.toml", "CITATION.cff", "notebooks", "docs/set_repository.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copied = shutil.copytree if (root / name).is_dir() else shutil.copy
        copied(root / name, tmp_path / name)
    command = [sys.executable, tmp_path / "docs" / "set_repository.py"]
    before, states = all_texts(tmp_path), []
    for address in ("https://example.org/a/b", *2 * ["https://github.com/me/imta_jax.git"]):
        subprocess.run([*command, address], check=True)
        states.append(all_texts(tmp_path))
    assert states[0] != states[1] == states[2] and "example.org" not in "".join(states[1].values())
    assert states[1].keys() == before.keys()
    urls = tomllib.loads(states[1]["pyproject.toml"])["project"]["urls"]
    old = tomllib.loads(before["pyproject.toml"])["project"]["urls"]
    assert old.items() <= urls.items() and urls["Repository"] == "https://github.com/me/imta_jax"
    assert 'repository-code: "https://github.com/me/imta_jax"' in states[1]["CITATION.cff"]
    for name in FIGURES:
        text = states[1][f"notebooks/{name}.ipynb"]
        assert "colab.research.google.com/github/me/imta_jax/blob" in text
        assert "git+https://github.com/me/imta_jax" in text
    wrong = subprocess.run([*command, "github.com/me"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "github.com/me" in wrong.stderr.splitlines()[-1]


def all_texts(folder):
    files = [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


@pytest.mark.parametrize("name", FIGURES)
def test_functions_of_notebooks_are_short(name):
    trees = [ast.parse(plain_python(cell.source)) for cell in code_cells(name)]
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert all(length <= MAX_FUNCTION_LINES for length in lengths.values()), lengths
