"""Copies the repository's notebooks into the site's sources, where Sphinx can find them."""

import shutil
from pathlib import Path

from sphinx.application import Sphinx


def copy_notebooks(app: Sphinx) -> None:
    """Copies `notebooks/*.ipynb` to `docs/notebooks/`, where changed; Git ignores the copies."""
    target = Path(app.srcdir) / "notebooks"
    target.mkdir(exist_ok=True)
    for source in sorted((Path(app.srcdir).parent / "notebooks").glob("*.ipynb")):
        copy = target / source.name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)


def setup(app: Sphinx) -> dict[str, bool]:
    """Copies before Sphinx looks for sources."""
    app.connect("builder-inited", copy_notebooks)
    return {"parallel_read_safe": True}
