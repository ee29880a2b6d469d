"""Writes the address of the repository wherever it is named.

    python docs/set_repository.py https://github.com/OWNER/imta_jax

These are the project's URLs in pyproject.toml, `repository-code` in CITATION.cff, and the badge and
install line of every notebook. A second call with another address replaces the first one. Needs
`pip install -e ".[notebooks]"`.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))

import store_outputs  # noqa: E402

_ADDRESS = re.compile(r"https://[\w.-]+(/[\w.~-]+){2,}")
_TABLE = "[project.urls]\n"


def checked_address(text: str) -> str:
    """The address without a final slash and `.git`. Raises a ValueError if it is not one."""
    address = text.strip().removesuffix("/").removesuffix(".git")
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"found {text!r}; expected https://HOST/OWNER/NAME")
    return address


def set_repository(root: Path, address: str) -> None:
    """Writes the address into the files below `root`."""
    _rewrite(root / "pyproject.toml", lambda text: with_urls(text, address))
    _rewrite(root / "CITATION.cff", lambda text: with_repository_code(text, address))
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        store_outputs.set_address(notebook, address, path.stem)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def with_urls(pyproject: str, address: str) -> str:
    """The text of pyproject.toml with the URLs of the repository, its issues and changelog."""
    urls = {
        "Repository": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
    }
    before, table, after = pyproject.partition(_TABLE)
    if not table:
        raise ValueError(f"pyproject.toml has no table {_TABLE.strip()}")
    end = re.search(r"^\[", after, re.MULTILINE)
    own, rest = (after[: end.start()], after[end.start() :]) if end else (after, "")
    own = re.sub(rf"^({'|'.join(urls)}) = .*\n", "", own, flags=re.MULTILINE)
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return before + table + lines + own + rest


def with_repository_code(citation: str, address: str) -> str:
    """The text of CITATION.cff with `repository-code` below the license."""
    citation = re.sub(r"^repository-code: .*\n", "", citation, flags=re.MULTILINE)
    line = f'repository-code: "{address}"\n'
    return re.sub(r"^license: .*\n", lambda match: match[0] + line, citation, flags=re.MULTILINE)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Writes the address that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="https://HOST/OWNER/NAME")
    try:
        set_repository(ROOT, checked_address(parser.parse_args().address))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
