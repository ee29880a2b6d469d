"""Runs the Python blocks of pages, in order: `python docs/run_examples.py PAGE...`.

The blocks of a page share one namespace. Blocks fenced as `py` need the folder of a run and are not
run.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[str]:
    """The Python code blocks of a Markdown page, with the lines before them left empty."""
    text = page.read_text()
    return ["\n" * text.count("\n", 0, m.start(1)) + m[1] for m in _BLOCK.finditer(text)]


def run_page(page: Path) -> None:
    """Runs a page's blocks; relative paths are of the current folder."""
    namespace = {"__name__": "example"}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for `configs`
    for argument in sys.argv[1:]:
        run_page(Path(argument))
