"""Executes notebooks and stores their outputs; writes their badge and install line.

    python notebooks/store_outputs.py                      # all notebooks, half an hour
    python notebooks/store_outputs.py budget_curve         # one
    python notebooks/store_outputs.py --no-execution       # keeps the outputs, after a rename

The address of the repository is read from `[project.urls] Repository` in pyproject.toml. Without
one, notebooks have no badge and install the package from the folder above them. `inspect_a_run`
reads the run of the README's quickstart. Needs `pip install -e ".[notebooks]"`.
"""

import argparse
import base64
import hashlib
import io
import re
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
PACKAGE = "imta_jax[train,report]"
INSTALL_CELL = (
    "import importlib.util\n\n"
    'if importlib.util.find_spec("imta_jax") is None:\n'
    '    %pip install -q "{requirement}"'
)
COLAB = "https://colab.research.google.com"
BADGE = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}"
GITHUB = "https://github.com/"
SECONDS_PER_CELL = 3600
COLORS = 64
CODE_DIGEST = "executed_code"  # in a notebook's metadata
SLOW_COMPILATION = "slow_operation_alarm"  # from XLA, on a busy machine


def repository_address(pyproject: Path) -> str | None:
    """The address of the Git repository; None if the project does not state one."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    return None if address is None else address.removesuffix("/").removesuffix(".git")


def requirement(address: str | None) -> str:
    """What pip installs: from the repository, or from the folder above the notebook."""
    return f"{PACKAGE} @ git+{address}" if address else "..[train,report]"


def badge(address: str | None, name: str) -> str | None:
    """A link that opens the notebook in Colab; None if the repository is not on GitHub."""
    if address is None or not address.startswith(GITHUB):
        return None
    repository = address.removeprefix(GITHUB)
    return f"{BADGE}/github/{repository}/blob/main/notebooks/{name}.ipynb)"


def set_address(notebook: NotebookNode, address: str | None, name: str) -> None:
    """Writes the badge below the title, and the install line into the first code cell."""
    title, text = notebook.cells[:2]
    lines = [line for line in title.source.splitlines() if not line.startswith(BADGE)]
    while len(lines) > 1 and not lines[1]:
        del lines[1]
    link = badge(address, name)
    title.source = "\n".join([lines[0], "", *([link, ""] if link else []), *lines[1:]])
    text.source = INSTALL_CELL.format(requirement=requirement(address))


def execute(notebook: NotebookNode, folder: Path = FOLDER) -> None:
    """Runs all cells in `folder`. Nothing that changes from run to run is stored with a cell."""
    metadata = notebook.metadata.copy()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, resources=resources, record_timing=False
    ).execute()
    notebook.metadata = metadata
    clean_outputs(notebook)


def code_digest(notebook: NotebookNode) -> str:
    """A digest of the code whose outputs are stored: all code cells but the installation."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources[1:]).encode()).hexdigest()[:16]


def clean_outputs(notebook: NotebookNode) -> None:
    """Makes figures smaller, and removes what depends on the process or its speed."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [o for o in cell.outputs if SLOW_COMPILATION not in o.get("text", "")]
        for data in (output.get("data", {}) for output in cell.outputs):
            if "image/png" in data:
                data["image/png"] = smaller_png(data["image/png"])
            if "text/html" in data:  # identifiers of pandas
                data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}", f"T_{cell.id}", data["text/html"])
            if len(data) > 1:  # else `data` has no other form of the value
                data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])


def smaller_png(encoded: str) -> str:
    """A Base64-encoded PNG file with at most `COLORS` colors."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def main() -> None:
    """Updates the notebooks that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; all by default")
    parser.add_argument(
        "--no-execution", action="store_true", help="keeps the outputs, after a rename"
    )
    arguments = parser.parse_args()
    address = repository_address(FOLDER.parent / "pyproject.toml")
    for name in arguments.names or names:
        path = FOLDER / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        set_address(notebook, address, name)
        if not arguments.no_execution:
            execute(notebook)
        notebook.metadata[CODE_DIGEST] = code_digest(notebook)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(f"{name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
