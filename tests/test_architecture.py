"""Checks of the source code: import directions, docstrings, and sizes of files and functions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "imta_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
_FOLDERS = ("benchmarks", "examples")
SCRIPTS = sorted([*ROOT.glob("*.py"), *(p for f in _FOLDERS for p in (ROOT / f).rglob("*.py"))])

# Imports go to a lower layer or stay in the same folder.
LAYERS = (
    {"types", "errors", "options"},
    {"runtime"},
    {"config"},
    {"distributed", "nn"},
    {"techniques", "data"},
    {"models"},
    {"training", "interop"},
    {"evaluation"},
    {"pretrained", "inference", "report"},
    {"studies", "planning"},
    {"cli"},
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def layer_name(path: Path) -> str:
    """The first name below the package: a folder or a module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, including those in functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: use an absolute import"
            # `from imta_jax import errors` imports the module imta_jax.errors.
            if node.module in ("imta_jax", "benchmarks"):
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
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


def test_at_most_six_modules_are_outside_the_folders():
    assert len([path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]) <= 6


def test_every_folder_has_a_layer():
    names = {layer_name(path) for path in MODULES} - {"__init__", "__main__"}
    assert names <= RANKS.keys()


@parametrize_modules([path for path in MODULES if layer_name(path) in RANKS])
def test_imports_go_to_a_lower_layer_or_stay_in_the_folder(path: Path):
    own = layer_name(path)
    wrong = []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "imta_jax" or len(parts) == 1 or parts[1] == own:
            continue
        if RANKS[parts[1]] >= RANKS[own]:
            wrong.append(f"{name_of(path)}:{line} (layer {RANKS[own]}) imports {name}")
    assert not wrong, wrong


def test_the_package_itself_imports_only_lazy_imports():
    actual = {name for _, name in imports(PACKAGE / "__init__.py")}
    assert actual == {"imta_jax.runtime.lazy_imports"}


def test_report_runs_without_jax():
    paths = [path for path in MODULES if layer_name(path) == "report"]
    assert paths and not (actual := offending(paths, ACCELERATED)), actual


def test_tensorflow_is_imported_only_in_data():
    elsewhere = [path for path in [*MODULES, *SCRIPTS] if PACKAGE / "data" not in path.parents]
    actual = offending(elsewhere, {"tensorflow", "tensorflow_datasets"})
    compared = ("benchmarks/input_pipeline", "benchmarks/image_files")
    assert not [path for path in actual if not path.startswith(compared)], actual


def test_no_module_imports_a_posix_only_module_on_import():
    posix_only = {"fcntl", "grp", "pwd", "resource", "termios"}
    nested = "imta_jax/runtime/environment.py"  # within a function that is not reached on Windows
    assert not [line for line in offending(MODULES, posix_only) if not line.startswith(nested)]


def test_configs_import_no_framework():
    actual = offending(CONFIGS, {"imta_jax", "tensorflow", "tensorflow_datasets", *ACCELERATED})
    assert not actual, actual


@parametrize_modules(MODULES)
def test_files_and_functions_are_short(path: Path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    long = [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(parsed(path))
        if isinstance(node, Function) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long, long


def public_definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods; magic methods are documented by their class."""
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
    assert ast.get_docstring(tree), "the module has no docstring"


def test_no_module_has_a_generic_name():
    generic = {"utils.py", "common.py", "misc.py", "helpers.py"}
    assert not [name_of(path) for path in MODULES if path.name in generic]


# Errors for users are the classes of imta_jax/errors.py, which the command line prints as one line.
BUILT_IN_ERRORS = {
    "ValueError",
    "OSError",
    "FileNotFoundError",
    "ImportError",
    "FloatingPointError",
}
BUILT_IN_ERRORS |= {"FileExistsError", "PermissionError", "BlockingIOError", "ModuleNotFoundError"}
CONVERSIONS = {"imta_jax/runtime/write_errors.py": {"OSError"}}  # Converts errors of Orbax.


@parametrize_modules(MODULES)
def test_errors_for_users_are_user_errors(path: Path):
    raised = {
        node.exc.func.id
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }
    assert not raised & BUILT_IN_ERRORS - CONVERSIONS.get(name_of(path), set())


def test_the_launcher_is_short():
    assert len((ROOT / "launch.py").read_text().splitlines()) < 100


@parametrize_modules([path for path in SCRIPTS if "tests" not in path.parts])
def test_scripts_are_documented_and_within_the_size_limits(path: Path):
    test_files_and_functions_are_short(path)
    test_every_module_and_public_name_has_a_docstring(path)


def test_benchmarks_have_no_import_cycle():
    graph = {
        path.stem: {name.split(".")[1] for _, name in imports(path) if name.count(".") == 1}
        for path in (ROOT / "benchmarks").glob("*.py")
    }
    done: set[str] = set()
    while ready := {name for name in graph.keys() - done if not graph[name] & graph.keys() - done}:
        done |= ready
    assert done == graph.keys()


# Words of earlier versions that are not terms of the field, and British spellings. The lookaheads
# leave out keys of result files.
PRIVATE_WORDS = (
    *("a word with the host", "anew", "as they are", "at hand", "borne", "carving", "entrance"),
    *("judged", "kept steps", "likewise", "mended", "pace", r"photograph\w*", "pictures"),
    *(r"(?<!platform\.)processors?", "spoilt", "surroundings", "taken over", "told", "whom"),
    *(r"centre\w*", r"colour\w*", r"initialis\w*", r"neighbour\w*"),
    *(r"normalis(?!ations\b|ed_channels\b)\w*", r"optimis(?!ed\b)\w*"),
)


def test_texts_have_no_private_words():
    pattern = re.compile(rf"\b({'|'.join(PRIVATE_WORDS)})\b")
    folders = ("imta_jax", "configs", "benchmarks", "examples", "notebooks", "docs", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    texts = [path for path in paths if path.suffix in (".py", ".md", ".ipynb", ".jinja")]
    actual = [
        f"{name_of(path)}:{number}: {match[0]}"
        for path in texts
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in pattern.finditer(line)
    ]
    assert not actual, actual
