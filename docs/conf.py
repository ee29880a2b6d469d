"""Sphinx configuration: MyST pages, API pages from docstrings, reference tables from the code."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
# The extension, and the repository root for `configs`, which is not installed.
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

from imta_jax import __version__  # noqa: E402

project = "imta_jax"
author = "the imta_jax authors"
release = __version__
html_title = "imta_jax"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "code_reference",
    "copied_notebooks",
    "plain_docstrings",
]
exclude_patterns = ["_ext"]

html_theme = "sphinx_book_theme"
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search field
    "use_download_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 1,
}
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks have stored outputs (notebooks/store_outputs.py).
nb_execution_mode = "off"

default_role = "code"
smartquotes = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Attributes of the same name in several classes: their names are shown, not linked.
suppress_warnings = ["ref.python"]
