"""Properties of the README and the documentation sources that need no Sphinx."""

import importlib.util
import pkgutil
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import config_fields  # noqa: E402

README = ROOT / "README.md"
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "build" not in page.parts
)
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # It has former names.
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"\b(?:imta_jax|configs|benchmarks|tests)/[\w/]+\.\w+")
_OVERRIDE = re.compile(r"--config\.([a-z_.]*[a-z_])")
_FIELD_PARTS = (
    "data",
    "model",
    "phase_one",
    "phase_two",
    "evaluation",
    "mesh",
    "checkpoint",
    "log",
)


def test_readme_has_at_most_150_lines():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    prose = _FENCE.sub("", page.read_text())
    targets = [t for t in _LINK.findall(prose) if not t.startswith(("http", "#"))]
    # The copies of the notebooks in docs/ exist only while the site is built.
    paths = [page.parent / target.partition("#")[0] for target in targets]
    assert [str(p) for p in paths if not p.exists()] == []


def test_comments_of_the_config_describe_exactly_the_fields_of_the_dataclasses():
    described = config_fields.described_fields()
    assert {path.partition(".")[0] for path in described} >= set(_FIELD_PARTS)
    assert set(described) == config_fields.declared_fields()


def test_valid_values_come_from_the_config_dataclasses():
    valid = {field.path: field.valid for field in config_fields.config_fields()}
    assert valid["phase_one.batch_size"] == "`int`, at least 1"
    assert valid["phase_one.equilibrium"] == "`'off'`, `'coarsest'`, `'all'`"
    assert valid["model.growth_factors"] == "`tuple[int, ...]`"
    assert valid["model.options"] == "options with any names"
    assert "`'independent'`" in valid["model.heads"]


def test_config_page_lists_every_part_of_the_config():
    page = (ROOT / "docs" / "reference" / "config.md").read_text()
    parts = {f.path.partition(".")[0] for f in config_fields.config_fields() if "." in f.path}
    assert parts | {"run"} == set(re.findall(r"```\{config-fields\} (\w+)", page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_overrides_name_config_fields(page):
    known = {field.path for field in config_fields.config_fields()}
    overrides = {
        name
        for name in _OVERRIDE.findall(page.read_text())
        if name.partition(".")[0] in _FIELD_PARTS
    }
    # Options of own components have any names.
    named = {re.sub(r"((?:\w+_)?options)\.[\w.]+$", r"\1", name) for name in overrides}
    assert sorted(named - known) == []


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_text_exist(page):
    named = set(_FILE.findall(page.read_text()))
    missing = {name for name in named if not (ROOT / name).is_file() and "NAME" not in name}
    assert missing == set()


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_the_package_exist(page):
    named = set(re.findall(r"`(imta_jax(?:\.\w+)+)", page.read_text()))
    assert [name for name in sorted(named) if not _exists(name)] == []


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_named_in_commands_exist(page):
    named = set(re.findall(r"python -m (imta_jax[\w.]*)", page.read_text()))
    missing = [name for name in named if importlib.util.find_spec(f"{name}.__main__") is None]
    assert missing == []


def _exists(name):
    try:
        return pkgutil.resolve_name(name) is not None
    except (AttributeError, ImportError):
        return False
