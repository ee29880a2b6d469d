"""`run.py` of an export accepts and rejects the image files that this package does."""

import json
import random
import shutil
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from encoded_samples import encoded, jpeg_of_size, raw_png, without_adobe_marker
from limited_imports import import_only
from PIL import Image
from sample_images import make_image

from imta_jax.inference import load_exported
from imta_jax.inference.command import main
from imta_jax.inference.export import runner_command
from imta_jax.inference.export.folder import write_checksums
from imta_jax.inference.export.runner_files import MODULES, READING, write_runner

END = b"\xff\xd9"
JAX = {"jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy", "PIL"}
PACKAGES = {"stablehlo": {*JAX, READING}, "onnx": {"onnxruntime", "numpy", "PIL", READING}}
RUN = "import runpy; sys.argv[:] = {}; runpy.run_path(sys.argv[0], run_name='__main__')"
OPTIONS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
NUM_RANDOM = 24


def fixed_files():
    """Unusual image files of 16 x 16 pixels, by name."""
    image = make_image(16, 16, cells=8)
    jpeg, cmyk = encoded(image, "JPEG"), encoded(image.convert("CMYK"), "JPEG")
    frames = [make_image(16, 16, seed) for seed in (1, 2)]
    sixteen_bits = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    return {
        "gray.png": encoded(image.convert("L"), "PNG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": cmyk,
        "cmyk_without_adobe_marker.jpg": without_adobe_marker(cmyk),
        "sixteen_bits.png": encoded(Image.fromarray(sixteen_bits), "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG"),
        "no_palette.png": raw_png(4, 3, size=(16, 16)),
        "palette_bmp.jpg": encoded(image.quantize(16), "BMP"),
        "animated.png": encoded(image, "PNG", save_all=True, append_images=frames),
        "animated_gif.png": encoded(image, "GIF", save_all=True, append_images=frames),
        "webp.jpg": encoded(image, "WEBP"),
        "text.jpg": b"not an image",
        "empty.png": b"",
        "no_checksum.png": raw_png(8, 2, size=(16, 16), checksum=False),
        "missing_data.jpg": jpeg[: len(jpeg) * 3 // 4] + END,
        "too_large.jpg": jpeg_of_size(jpeg, 60000, 60000),
        "other_size.png": encoded(make_image(17, 16), "PNG"),
        "line\nbreak.png": b"",
    }


def random_files():
    """JPEG and PNG files that are cut or changed at random."""
    rng, files = random.Random(0), {}
    for i in range(NUM_RANDOM):
        kind = rng.choice(["JPEG", "PNG"])
        contents = encoded(make_image(16, 16, seed=i, cells=8), kind)
        place = rng.randrange(len(contents))
        change = bytes([rng.randrange(256)])
        cut = contents[:place]
        changed = rng.choice([cut, cut + END, cut + change + contents[place + 1 :]])
        files[f"random{i:02}.{kind.lower()}"] = changed
    return files


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, contents in {**fixed_files(), **random_files()}.items():
        (folder / name).write_bytes(contents)
    (folder / "broken_link.png").symlink_to(folder / "nothing.png")
    return folder


@pytest.fixture(scope="module", params=PACKAGES)
def format_(request):
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
    return request.param


@pytest.fixture(scope="module")
def runner_folder(format_, classifier, export, exported_folder, tmp_path_factory):
    """An export. Tests must not change it."""
    if format_ == "stablehlo":
        return exported_folder
    return export(classifier, tmp_path_factory.mktemp("onnx") / "export", format="onnx")


@pytest.fixture(scope="module")
def run(format_, runner_folder):
    """A function that calls `run.py` without this package."""

    def call(*arguments, folder=runner_folder):
        argv = [str(folder / "run.py"), *map(str, arguments)]
        program = import_only(PACKAGES[format_]) + RUN.format(argv)
        command = [sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, text=True, env=OPTIONS, check=False)

    return call


def reports(stderr):
    """Messages about files and their number, without the name of the program."""
    return [line.partition(": ")[2] for line in stderr.splitlines() if "skipped" in line]


def test_run_py_accepts_and_rejects_the_files_that_the_package_does(
    run, exported_folder, image_folder, capsys
):
    code = main([str(exported_folder), str(image_folder), "--budget=0.5", "--json"])
    expected = capsys.readouterr()
    labels = [(row["file"], row["label"]) for row in map(json.loads, expected.out.splitlines())]
    actual = run(image_folder)
    assert (actual.returncode, code) == (1, 1)
    assert reports(actual.stderr) == reports(expected.err)
    predicted = [line.split("\t") for line in actual.stdout.splitlines()]
    assert [(name, label) for name, label, *_ in predicted] == labels
    assert min(len(labels), len(reports(actual.stderr))) >= 8
    assert "Traceback" not in actual.stderr


def test_run_py_reports_an_argument_it_cannot_use_with_exit_code_2(run, image_folder):
    for arguments, message in [
        ([image_folder / "nothing.jpg"], "nothing.jpg does not exist"),
        ([image_folder, "--budget=0.1"], "pass --budget="),
    ]:
        actual = run(*arguments)
        assert actual.returncode == 2
        (line,) = actual.stderr.splitlines()
        assert message in line


def manifest_with(**changes):
    """A function that changes fields of a manifest; None deletes the field."""

    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text()) | changes
        kept = {name: value for name, value in manifest.items() if value is not None}
        (folder / "manifest.json").write_text(json.dumps(kept))

    return change


def manifest_as(content):
    """A function that replaces a manifest."""
    return lambda folder: (folder / "manifest.json").write_bytes(content)


def without_thresholds(folder):
    """Deletes the thresholds of a manifest."""
    points = json.loads((folder / "manifest.json").read_text())["operating_points"]
    manifest_with(operating_points=[{**p, "thresholds": None} for p in points])(folder)


def files_of(folder, pattern):
    """The only or first file of a pattern."""
    return sorted(folder.glob(pattern))[0]


def cut(pattern, part):
    """A function that keeps the first bytes of a file; `part` is their fraction."""

    def change(folder):
        path = files_of(folder, pattern)
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])

    return change


DAMAGES = {
    "manifest_empty": (manifest_as(b""), "manifest.json is damaged"),
    "manifest_cut": (cut("manifest.json", 0.5), "manifest.json is damaged"),
    "manifest_object": (manifest_as(b"{}"), "manifest.json is damaged"),
    "manifest_list": (manifest_as(b"[]"), "manifest.json is damaged"),
    "manifest_bytes": (manifest_as(b'{"format_version": "\xff"}'), "manifest.json is damaged"),
    "no_thresholds": (without_thresholds, "manifest.json is damaged"),
    "no_points": (manifest_with(operating_points=[]), "operating_points"),
    "no_names": (manifest_with(class_names=None), "class_names"),
    "newer": (manifest_with(format_version=99), "format_version is 99; this run.py reads up to"),
    "version_text": (manifest_with(format_version="x"), "format_version"),
    "stage_empty": (cut("stage_0.*", 0), ""),
    "stage_cut": (cut("stage_0.*", 0.5), ""),
    "stage_missing": (lambda folder: files_of(folder, "stage_1.*").unlink(), "stage_1"),
}
FEW_NAMES = manifest_with(class_names=[])
STAGE_REPLACED = (
    lambda folder: files_of(folder, "stage_0.*").write_bytes(
        files_of(folder, "stage_1.*").read_bytes()
    ),
    "stage_0",
)
WITH_OLD_CHECKSUMS = {
    "few_names": (FEW_NAMES, "manifest.json is damaged or was changed"),
    "stage_replaced": STAGE_REPLACED,
    "no_checksums": (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS"),
}


WITH_NEW_CHECKSUMS = {
    "few_names": (FEW_NAMES, "number of class_names is 0"),
    "stage_replaced": STAGE_REPLACED,
}


@pytest.mark.parametrize("checksums", ["old", "new"])
def test_damaged_export_is_one_line_with_exit_code_2(
    checksums, format_, runner_folder, image_folder, tmp_path, monkeypatch, capsys
):
    network = import_module(f"imta_jax.inference.export.{format_}_runner").Network
    monkeypatch.setattr(sys, "argv", ["run.py", str(image_folder / "gray.png")])
    damages = DAMAGES | (WITH_OLD_CHECKSUMS if checksums == "old" else WITH_NEW_CHECKSUMS)
    if format_ == "stablehlo":
        damages["weights_cut"] = cut("weights.npz", 0.5), ""
    for name, (damage, message) in damages.items():
        folder = shutil.copytree(runner_folder, tmp_path / name)
        damage(folder)
        if checksums == "new":
            write_checksums(folder)
        assert runner_command.main(network, folder, "") == 2, name
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert message in line
        assert not output.out


def test_missing_folder_of_modules_is_one_line_with_exit_code_2(run, runner_folder, tmp_path):
    folder = shutil.copytree(runner_folder, tmp_path / "export")
    shutil.rmtree(folder / READING)
    actual = run("a.png", folder=folder)
    assert actual.returncode == 2
    (line,) = actual.stderr.splitlines()
    assert READING in line and "copy the export again" in line


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxruntime"), ("stablehlo", "jax")])
def test_run_py_names_a_package_that_is_not_installed(name, module, tmp_path):
    write_runner(f"{name}_runner.py", tmp_path)
    (tmp_path / "manifest.json").write_text('{"stages": [0]}')
    np.savez(tmp_path / "weights.npz")
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    run = RUN.format([f"{tmp_path}/run.py", str(tmp_path)])
    for installed, missing in [({"numpy", "PIL"}, module), ({"PIL"}, "numpy")]:
        command = [sys.executable, "-c", import_only({*installed, READING}) + run]
        actual = subprocess.run(command, capture_output=True, text=True, env=OPTIONS, check=False)
        assert actual.returncode == 2
        (line,) = actual.stderr.splitlines()
        assert line.startswith(f"run.py: error: No module named '{missing}'")


def test_changed_copy_of_a_module_is_found(exported_folder, tmp_path):
    names = {path.name for path in (exported_folder / READING).iterdir()}
    assert names == {"__init__.py", *(f"{name.split('.')[-1]}.py" for name in MODULES)}
    folder = shutil.copytree(exported_folder, tmp_path / "export")
    (folder / READING / "header.py").write_text("")
    with pytest.raises(ValueError, match=r"header\.py.*damaged or was changed"):
        load_exported(folder)
