"""Rules that a parser can check: the direction of imports, docstrings and sizes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "imta_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
SCRIPTS = sorted([*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

# An import goes to a lower layer or stays in its own folder.
LAYERS = (
    {"types", "errors"},
    {"fields"},
    {"config"},
    {"runtime"},
    {"distributed", "nn"},
    {"techniques", "data"},
    {"models"},
    {"training", "interop"},
    {"pretrained", "evaluation"},
    {"inference", "report"},
    {"studies"},
    {"cli"},
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 60
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def layer_name(path: Path) -> str:
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
            # `from imta_jax import errors` imports the same module as `import imta_jax.errors`.
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


def test_every_folder_has_a_layer():
    names = {layer_name(path) for path in MODULES} - {"__init__", "__main__"}
    assert names <= RANKS.keys()


@parametrize_modules([path for path in MODULES if layer_name(path) in RANKS])
def test_imports_go_to_a_lower_rank_or_stay_in_the_folder(path: Path):
    own = layer_name(path)
    wrong = []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "imta_jax" or len(parts) == 1 or parts[1] == own:
            continue
        if RANKS[parts[1]] >= RANKS[own]:
            wrong.append(f"{name_of(path)}:{line} (rank {RANKS[own]}) imports {name}")
    assert not wrong, wrong


def test_the_package_itself_imports_nothing():
    assert not list(imports(PACKAGE / "__init__.py"))


def test_report_runs_without_jax():
    paths = [path for path in MODULES if layer_name(path) == "report"]
    assert paths and not (found := offending(paths, ACCELERATED)), found


def test_tensorflow_is_imported_only_in_data():
    elsewhere = [path for path in [*MODULES, *SCRIPTS] if PACKAGE / "data" not in path.parents]
    found = offending(elsewhere, {"tensorflow", "tensorflow_datasets"})
    compared = ("benchmarks/input_pipeline", "benchmarks/image_files")
    assert not [one for one in found if not one.startswith(compared)], found


def test_configs_are_plain():
    found = offending(CONFIGS, {"imta_jax", "tensorflow", "tensorflow_datasets", *ACCELERATED})
    assert not found, found


@parametrize_modules(MODULES)
def test_files_and_functions_are_short(path: Path):
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
def test_every_module_and_public_name_has_a_docstring(path: Path):
    tree = parsed(path)
    missing = [name for name, node in public_definitions(tree) if not ast.get_docstring(node)]
    assert not missing, missing
    assert ast.get_docstring(tree), "the module lacks a docstring"


def test_no_module_is_a_catch_all():
    catch_alls = {"utils.py", "common.py", "misc.py", "helpers.py"}
    assert not [name_of(path) for path in MODULES if path.name in catch_alls]


def test_the_launcher_is_flags_and_dispatch():
    for path in ROOT.glob("launch.py"):
        assert len(path.read_text().splitlines()) < 100
