"""Writes the files that run an export without this package: `run.py` and `image_reading/`.

`run.py` is a copy of `stablehlo_runner` or `onnx_runner`. `image_reading/` has copies of the
modules that decode and preprocess image files, so that an export accepts and rejects the same files
as this package. The copies import each other from their folder and need NumPy and Pillow only.
"""

import ast
import re
import textwrap
from pathlib import Path

RUNNER, READING = "run.py", "image_reading"
MODULES = (
    "errors",
    "data.padding",
    "data.decoding.exif",
    "data.decoding.header",
    "data.decoding.jpeg_header",
    "data.decoding.pillow_decoder",
    "data.decoding.png_header",
    "data.decoding.refusal",
    "data.pipeline.decoded_part",
    "data.pipeline.evaluation_transform",
    "inference.export.runner_command",
    "inference.export.runner_manifest",
    "inference.image_files",
    "inference.printable_text",
    "runtime.paths",
)
_PACKAGE = Path(__file__).parents[2]
_IMPORT_FROM_MODULE = re.compile(
    rf"^from imta_jax\.(?:\w+\.)*({'|'.join(name.split('.')[-1] for name in MODULES)}) import",
    re.MULTILINE,
)
_IMPORT_OF_MODULES = re.compile(r"^from imta_jax\.data\.decoding import", re.MULTILINE)
_JAXTYPING = re.compile(r"^from jaxtyping import .*\n", re.MULTILINE)
_READING_IMPORTS = re.compile(rf"^import numpy as np\n\n(?:^from {READING}\..*\n)+", re.MULTILINE)
# `run.py` may be imported, too: its folder is then not searched for modules. A module may be
# missing or damaged, and so may a package that it imports.
_IMPORT_FROM_FOLDER = """\
sys.path.insert(0, str(Path(__file__).parent))
try:
{imports}except Exception as error:
    if __name__ != "__main__":
        raise
    remedy = "copy the export again, or install the missing package"
    print(f"run.py: error: {{error}}; {{remedy}}", file=sys.stderr)
    sys.exit(2)
"""


def write_runner(source: str, folder: Path) -> None:
    """Writes the files that run an export without this package into its folder.

    Args:
      source: file name of the runner, in the folder of this module.
      folder: the export.
    """
    runner = Path(__file__).with_name(source).read_text(encoding="utf-8")
    runner = _IMPORT_FROM_MODULE.sub(rf"from {READING}.\1 import", runner)
    runner = _READING_IMPORTS.sub(_in_folder, runner, count=1)
    (folder / RUNNER).write_text(runner, encoding="utf-8")
    reading = folder / READING
    reading.mkdir()
    (reading / "__init__.py").write_text(
        '"""Reads image files as training and evaluation do. Copied from imta_jax."""\n'
    )
    for name in MODULES:
        module = _PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
        (reading / module.name).write_text(
            _standalone(module.read_text(encoding="utf-8")), encoding="utf-8"
        )


def _in_folder(imports: re.Match[str]) -> str:
    return _IMPORT_FROM_FOLDER.format(imports=textwrap.indent(imports[0], "    "))


def _standalone(source: str) -> str:
    """The source of a module of `MODULES` for the folder of an export."""
    end = ast.parse(source).body[0].end_lineno or 1  # of the docstring
    lines = source.splitlines(keepends=True)
    # Annotations are not evaluated, so that jaxtyping's shapes need no import.
    lines[end:end] = ["\n", "from __future__ import annotations\n"]
    source = _JAXTYPING.sub("", "".join(lines))
    source = _IMPORT_OF_MODULES.sub("from . import", source)
    return _IMPORT_FROM_MODULE.sub(r"from .\1 import", source)
