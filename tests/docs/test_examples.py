"""The Python blocks of the documentation run, without warnings."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from run_examples import python_blocks, run_page  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.mark.usefixtures("restored_registries")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # Measured profiles are stored below it.
    monkeypatch.chdir(tmp_path)
    run_page(page)
