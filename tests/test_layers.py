"""The house rules that a parser can check: who imports whom, docstrings, sizes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "imta_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
SCRIPTS = sorted([*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

RANKS = {
    "types": 0,
    "command_line": 0,
    "errors": 0,
    "config_record": 0,
    "cores": 0,
    "folder_lock": 0,
    "layout": 0,
    "channels_first": 0,
    "convolution": 0,
    "materialized": 0,
    "normalization": 0,
    "huge_pages": 0,
    "layers": 0,
    "lazy_names": 0,
    "pixels": 0,
    "progress_bar": 0,
    "techniques": 1,
    "collectives": 1,
    "parallel": 1,
    "data": 2,
    "models": 2,
    "training": 3,
    "interop": 3,
    "pretrained": 4,
    "evaluation": 4,
    "inference": 5,
    "report": 5,
    "doctor": 6,
    "run": 7,
    "study": 7,
}
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 60
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The first name below the package: a folder, or a module that stands by itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: import by the full name"
            # `from imta_jax import errors` names a room as much as `import imta_jax.errors`.
            if node.module == "imta_jax":
                yield from ((node.lineno, f"imta_jax.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            target = node.args[0] if node.args else None
            if isinstance(target, ast.Constant):
                yield node.lineno, target.value


def offending(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{name_of(path)}:{line} imports {name}"
        for path in paths
        for line, name in imports(path)
        if name.split(".")[0] in forbidden
    ]


def parametrize_modules(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[name_of(path) for path in paths])


def test_every_room_has_a_rank():
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms <= RANKS.keys()


@parametrize_modules([path for path in MODULES if room_of(path) in RANKS])
def test_imports_go_to_a_lower_rank_or_stay_in_the_room(path: Path):
    own = room_of(path)
    wrong = []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "imta_jax" or len(parts) == 1 or parts[1] == own:
            continue
        # The files of rank 0 lie in one folder: the package's own.
        if RANKS[parts[1]] >= RANKS[own] and not RANKS[parts[1]] == RANKS[own] == 0:
            wrong.append(f"{name_of(path)}:{line} (rank {RANKS[own]}) imports {name}")
    assert not wrong, wrong


def test_the_package_itself_imports_nothing():
    assert not list(imports(PACKAGE / "__init__.py"))


def test_report_runs_without_jax():
    paths = [path for path in MODULES if room_of(path) == "report"]
    assert paths and not (found := offending(paths, ACCELERATED)), found


def test_tensorflow_stays_in_the_data_room():
    elsewhere = [path for path in [*MODULES, *SCRIPTS] if PACKAGE / "data" not in path.parents]
    found = offending(elsewhere, {"tensorflow", "tensorflow_datasets"})
    compared = ("benchmarks/input_pipeline", "benchmarks/photographs")
    assert not [one for one in found if not one.startswith(compared)], found


def test_configs_are_plain():
    found = offending(CONFIGS, {"imta_jax", "tensorflow", "tensorflow_datasets", *ACCELERATED})
    assert not found, found


@parametrize_modules(MODULES)
def test_files_and_functions_keep_their_size(path: Path):
    assert len(path.read_text().splitlines()) <= MOST_LINES_OF_A_FILE
    long = [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(parsed(path))
        if isinstance(node, Function)
        and node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long, long


def public_definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Functions, classes and methods a reader may call; magic methods belong to their class."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try):
            yield from public_definitions(node, prefix)
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node, f"{node.name}.")


@parametrize_modules(MODULES)
def test_every_module_and_public_name_says_what_it_is(path: Path):
    tree = parsed(path)
    silent = [name for name, node in public_definitions(tree) if not ast.get_docstring(node)]
    assert not silent, silent
    assert ast.get_docstring(tree), "the module lacks a docstring"


def test_no_room_is_a_drawer():
    drawers = {"utils.py", "common.py", "misc.py", "helpers.py"}
    assert not [name_of(path) for path in MODULES if path.name in drawers]


def test_the_launcher_is_flags_and_dispatch():
    for path in ROOT.glob("launch.py"):
        assert len(path.read_text().splitlines()) < 100
