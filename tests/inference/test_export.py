"""An exported network answers as the one it came from, without its code, and only if undamaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from flax import nnx
from PIL import Image
from sample_images import judged_by_pillow, picture

from imta_jax.cli.run import run
from imta_jax.data import NO_AUGMENTATION, RandomAreaCrop
from imta_jax.evaluation import best_within_budget, confidence, exit_costs, pareto_front
from imta_jax.inference import (
    AdaptiveClassifier,
    OperatingPoint,
    export_classifier,
    export_run,
    load_exported,
    staged_classifier,
)
from imta_jax.inference.command import main
from imta_jax.inference.engine.operating_points import best_within_ms
from imta_jax.inference.export import run_export as export_module
from imta_jax.inference.export import writer
from imta_jax.inference.export.folder import CHECKSUMS, MANIFEST, WEIGHTS
from imta_jax.inference.export.manifest import point_for_manifest
from imta_jax.inference.image_files import find_pictures, read_picture
from imta_jax.models import build_classifier, with_collaborative_heads

TINY = {**tiny_run.NETWORK, "num_exits": 3}
SHAPE, CLASSES = (16, 16, 1), ("ant", "bee", "cow", "dog", "eel")
PIXELS = {"mean": (0.4,), "std": (0.3,)}
CHEAP = OperatingPoint(0.4, (0.3, 0.3, -1e8), (0.9, 0.1, 0.0), 70.0, 69.0)
DEAR = OperatingPoint(0.8, (0.99, 0.99, -1e8), (0.1, 0.1, 0.8), 80.0, 79.0)
PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture(scope="module")
def phase_one():
    return build_classifier(TINY, num_classes=5, image_shape=SHAPE, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def classifier(phase_one):
    heads = {"transfer": "linear", "start": "fresh"}
    return with_collaborative_heads(phase_one, heads, num_classes=5, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (37, *SHAPE), dtype=np.uint8)


def export(classifier, folder, **changes):
    fields = {
        "points": [DEAR, CHEAP],
        "class_names": CLASSES,
        "preprocessing": NO_AUGMENTATION,
        "platforms": PLATFORMS,
        **PIXELS,
    }
    export_classifier(classifier, folder, **fields | changes)
    return folder


@pytest.fixture(scope="module")
def sound(classifier, tmp_path_factory):
    """An exported folder; not to be changed."""
    return export(classifier, tmp_path_factory.mktemp("exports") / "sound")


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


@pytest.fixture
def pngs(images, tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for i, image in enumerate(images[:5]):
        Image.fromarray(image[..., 0]).save(root / f"{i}.png")
    return root


# ----- what comes back is the network


@pytest.mark.parametrize("name, dtype", [("I", "float32"), ("II", "float32"), ("II", "bfloat16")])
def test_an_exported_network_answers_as_the_original(
    phase_one, classifier, images, name, dtype, tmp_path
):
    classifier = {"I": phase_one, "II": classifier}[name]
    exported = load_exported(export(classifier, tmp_path / "e", dtype=dtype))
    options = {"max_batch_size": 16, "batch_sizes": (16,), "lanes": 1}
    original = AdaptiveClassifier(classifier, [0, 0, 0], dtype=dtype, **PIXELS, **options)
    # The median of each exit's confidences: every exit is taken.
    thresholds = np.median(confidence(original.logits(images)), axis=1)
    original = AdaptiveClassifier(classifier, thresholds, dtype=dtype, **PIXELS, **options)
    loaded = AdaptiveClassifier(exported.network, thresholds, **options)
    expected, found = original.predict(images), loaded.predict(images)
    assert len(np.unique(expected.exit)) == 3
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.exit, expected.exit)
    np.testing.assert_array_equal(found.macs, exit_costs(classifier).macs[found.exit])
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-6)


def test_one_program_serves_any_number_of_images_of_either_type(classifier, sound, images):
    original, network = staged_classifier(classifier, **PIXELS), load_exported(sound).network
    floats = ((images / np.float32(255) - 0.4) / 0.3).astype(np.float32)
    expected = np.asarray(jax.jit(original.logits)(original.weights, images[:7]))
    for count in (1, 3, 7):
        for given in (images[:count], floats[:count]):
            found = jax.jit(network.logits)(network.weights, given)
            np.testing.assert_allclose(found, expected[:, :count], atol=1e-5)


def test_programs_are_made_for_the_platforms_asked_for(classifier, sound, tmp_path):
    def programs(folder):
        paths = sorted(folder.glob("*.stablehlo"))
        return [jax.export.deserialize(bytearray(path.read_bytes())) for path in paths]

    only_cpu = programs(export(classifier, tmp_path / "cpu", platforms=("cpu",)))
    assert all(program.platforms == ("cpu",) for program in only_cpu)
    everywhere = programs(sound)
    assert len(everywhere) == 3 and all(program.platforms == PLATFORMS for program in everywhere)
    # Each platform's form of a narrow convolution is kept.
    several, one = (of[0].mlir_module().count("convolution") for of in (everywhere, only_cpu))
    assert several > one > 0


def test_the_folder_says_what_it_holds(classifier, sound):
    manifest = json.loads((sound / MANIFEST).read_text())
    assert [row["macs"] for row in manifest["exits"]] == exit_costs(classifier).macs.tolist()
    assert manifest["class_names"] == list(CLASSES)
    assert manifest["preprocessing"]["resize"] is None
    checked = subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=sound, capture_output=True)
    assert checked.returncode == 0


# ----- budgets


def test_a_budget_takes_the_best_thresholds_that_it_can_pay_for(sound):
    exported = load_exported(sound)
    for budget, point in ((0.4, CHEAP), (0.79, CHEAP), (0.8, DEAR), (1.0, DEAR)):
        assert exported.point_for(budget) == point
        found = exported.adaptive(budget).thresholds
        np.testing.assert_array_equal(found, np.asarray(point.thresholds, np.float32))
    with pytest.raises(ValueError, match=r"budget=0\.2 .*0\.400, 0\.800"):
        exported.adaptive(0.2)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"budget=.*above 0"):
            best_within_budget([CHEAP], wrong)


def test_points_that_a_cheaper_one_equals_are_left_out():
    worse = OperatingPoint(0.6, CHEAP.thresholds, CHEAP.validation_exit_fractions, 70.0, 90.0)
    assert pareto_front([DEAR, worse, CHEAP]) == (CHEAP, DEAR)


# ----- damage


def test_a_truncated_or_changed_or_missing_file_is_refused(sound, tmp_path):
    names = sorted(path.name for path in sound.iterdir())
    assert len(names) == 6
    for number, name in enumerate(names):
        content = (sound / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for kind, changed in (
            ("cut", content[: len(content) // 2]),
            ("empty", b""),
            ("flipped", bytes(flipped)),
            ("gone", None),
        ):
            folder = shutil.copytree(sound, tmp_path / f"{number}_{kind}")
            (folder / name).unlink()
            if changed is not None:
                (folder / name).write_bytes(changed)
            with pytest.raises(ValueError, match=r"damaged|missing|no manifest"):
                load_exported(folder)


def test_of_a_changed_checksum_both_files_are_suspected(folder):
    path = folder / CHECKSUMS
    digest = path.read_text()[0]
    path.write_text(("1" if digest == "0" else "0") + path.read_text()[1:])
    with pytest.raises(ValueError, match=rf"{MANIFEST} is damaged or .*{CHECKSUMS} \(unless that"):
        load_exported(folder)


def test_a_changed_manifest_is_refused(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace("0.99", "0.98"))
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged or was changed .*SHA-256"):
        load_exported(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 2}, "format version 2.*reads up to 1"),
        ({"format": "other"}, "not of an export"),
        ({"platforms": ["tpu"]}, "exported for tpu, and this is cpu; .*--platforms=tpu,cpu"),
        ({"calling_convention_version": 99}, "calling convention 99"),
        ({"stages": []}, "no version or no stages"),
        ({"exits": []}, f"{MANIFEST}: the number of exits is 0, and the programs are for 3"),
        ({"image_shape": []}, r"image_shape is \[\], and the programs are for \[16, 16, 1\]"),
        ({"class_names": []}, "class_names is 0, and the programs are for 5"),
        ({"class_names": [*CLASSES, "fox"]}, "class_names is 6, and the programs are for 5"),
        ({"operating_points": []}, "operating_points is empty"),
        (
            {"operating_points": [{**point_for_manifest(DEAR), "thresholds": [1]}]},
            "expected 3 numbers",
        ),
        (
            {"operating_points": [{**point_for_manifest(DEAR), "budget": None}]},
            r"budget is \[None\]",
        ),
        ({"preprocessing": {"mean": ["x"], "std": [1]}}, r"mean is \['x'\]; expected 1 numbers"),
        ({"preprocessing": {"mean": [0.5], "std": [0]}}, r"std is \[0\]; .*, none below"),
        ({"class_names": None}, "not of a form"),
    ],
)
def test_what_this_version_cannot_use_is_refused(folder, changes, message):
    reseal(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_exported(folder)


def test_weights_of_another_network_are_refused(folder):
    with np.load(folder / WEIGHTS) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["weight_0003"] = np.zeros((2, 2), np.float32)
    np.savez(folder / WEIGHTS, **arrays)
    reseal(folder)
    with pytest.raises(ValueError, match=r"weight_0003 is float32 \(2, 2\), and its program"):
        load_exported(folder)


def test_weights_are_read_without_unpickling(folder):
    np.savez(folder / WEIGHTS, weight_0000=np.asarray([{}], object))
    reseal(folder)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_exported(folder)


def test_no_program_is_refused(folder):
    (folder / "stage_1.stablehlo").write_bytes(b"no program at all" * 9)
    reseal(folder)
    with pytest.raises(ValueError, match=r"stage_1.stablehlo: jax .* cannot read it"):
        load_exported(folder)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"no {MANIFEST} in it"):
        load_exported(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_exported(tmp_path / "nowhere")


def reseal(folder, **changes):
    """Changes the manifest and makes the checksums fit, as a wrong or later writer would."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / CHECKSUMS).unlink()
    export_module.export_folder._seal(folder)


# ----- writing


def test_only_an_earlier_export_is_overwritten_and_only_if_asked(classifier, folder, tmp_path):
    with pytest.raises(FileExistsError, match="earlier export"):
        export(classifier, folder)
    export(classifier, folder, overwrite=True, points=[CHEAP])
    assert load_exported(folder).points == (CHEAP,)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="no earlier export"):
        export(classifier, other, overwrite=True)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_an_export_that_fails_leaves_the_earlier_one_and_nothing_else(
    classifier, folder, monkeypatch
):
    def full_disk(*_, **__):
        raise OSError("no space left")

    before = sorted(path.name for path in folder.parent.iterdir())
    monkeypatch.setattr(writer, "write_json", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export(classifier, folder, overwrite=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    assert load_exported(folder).points == (CHEAP, DEAR)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"platforms": ("gpu",)}, "unknown platform 'gpu'; valid.*cuda"),
        ({"platforms": ()}, "no platform"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"class_names": ["ant"]}, "class_names: expected 5 .* found 1"),
        ({"mean": (0.1, 0.2, 0.3)}, "mean: expected 1 .* found 3"),
        ({"points": []}, "no operating point"),
        (
            {"points": [OperatingPoint(1.0, (0.5,), (1.0,), 1.0, 1.0)]},
            "thresholds: expected 3 .* found 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    classifier, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        export(classifier, tmp_path / "e", **changes)
    assert not list(tmp_path.iterdir())


def test_a_run_is_exported_with_the_points_of_its_evaluation(tmp_path, capsys):
    config = tiny_run.tiny_config(
        tiny_run.write_dataset(tmp_path / "thirds.npz"),
        phase_one__total_epochs=1,
        phase_two__total_epochs=0,
    )
    workdir = tmp_path / "run"
    with tiny_run.compiled_once(tmp_path / "compiled"):
        for mode in ("phase_one", "evaluate"):
            run(config, workdir, mode)
    export_module.main([str(workdir), str(tmp_path / "e"), "--platforms=cpu"])
    assert "for cpu" in capsys.readouterr().out
    exported = load_exported(tmp_path / "e")
    results = json.loads((workdir / "results.json").read_text())
    for reported in results["reported_budgets"]:
        point = exported.point_for(reported["budget"])
        assert list(point.thresholds) == reported["thresholds"]
        assert point.top1 == reported["top1"]
    assert exported.manifest["origin"]["phase"] == "phase_one"
    results["exits"][0]["macs"] += 1
    (workdir / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="another network"):
        export_run(workdir, tmp_path / "f")
    with pytest.raises(SystemExit, match="2"):
        export_module.main([str(tmp_path), str(tmp_path / "f")])
    assert "finished run" in capsys.readouterr().err


# ----- pictures


def test_a_photograph_is_shown_as_in_evaluation(tmp_path):
    crop = RandomAreaCrop(size=32, resize=40, min_area=0.1, flip=False)
    for i, (height, width) in enumerate([(90, 120), (121, 77), (40, 300), (20, 25)]):
        image = picture(height, width, seed=i)
        image.save(tmp_path / "a.png")
        found = read_picture(tmp_path / "a.png", (32, 32, 3), crop.resize)
        assert found.size == (height, width) and found.pixels.dtype == np.uint8
        expected = judged_by_pillow(image, crop.resize, crop.size).astype(int)
        # Resizing the cropped part alone rounds once less.
        assert np.abs(found.pixels - expected).max() <= 2


def test_an_image_of_the_networks_size_is_shown_as_it_is(tmp_path):
    image = picture(16, 16)
    image.save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", (16, 16, 3))
    np.testing.assert_array_equal(found.pixels, np.asarray(image))


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (8, 8), (16, 17), (1, 5)])
@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 1), (12, 20, 3)])
def test_a_small_image_of_another_size_is_scaled_to_cover(tmp_path, size, shape):
    Image.new("RGB", size[::-1], (10, 200, 30)).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", shape)
    assert (
        found.pixels.shape == shape
        and len(np.unique(found.pixels.reshape(-1, shape[2]), axis=0)) == 1
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_pixels_becomes_what_the_network_reads(tmp_path, mode, channels):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((16, 16), 255 << 8, np.uint16)).save(path)
    else:
        white = Image.new("RGB", (16, 16), "white").convert(mode)
        white.save(path, **({"transparency": b"\0" * 256} if mode == "P" else {}))
    found = read_picture(path, (16, 16, channels)).pixels
    assert found.shape == (16, 16, channels) and (found == 255).all()


def test_folders_are_searched_and_files_taken_as_named(pngs, tmp_path):
    (pngs / "notes.txt").touch()
    assert [path.name for path in find_pictures([pngs])] == [f"{i}.png" for i in range(5)]
    assert find_pictures([pngs / "notes.txt"]) == [pngs / "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture in this folder"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="no such picture"):
        find_pictures([tmp_path / "*.png"])


# ----- the command


def test_the_runner_prints_what_the_network_says(sound, pngs, images, capsys):
    expected = load_exported(sound).adaptive(0.8).predict(images[:5])
    assert main([str(sound), str(pngs), "--budget=0.8"]) == 0
    heading, *rows, summary, _ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["file", "label", "confidence", "exit", "multiply-adds", "ms"]
    assert len({len(row) for row in [heading, *rows]}) == 1
    for i, row in enumerate(rows):
        file, label, sure, exit_, macs, _ = row.split()
        assert file == str(pngs / f"{i}.png") and label == CLASSES[expected.labels[i]]
        assert exit_ == f"{expected.exit[i] + 1}/3" and macs == f"{expected.macs[i]:,}"
        assert float(sure) == pytest.approx(expected.confidence[i], abs=1e-3)
    assert "5 images" in summary and "budget 0.8" in summary


def test_a_budget_in_time_takes_the_best_thresholds_that_fit():
    points = [
        OperatingPoint(0.3, (0.1, 0.0), (0.9, 0.1), 80.0, 80.0),
        OperatingPoint(0.6, (0.5, 0.0), (0.5, 0.5), 85.0, 85.0),
    ]
    assert best_within_ms(points, [1.0, 3.0], 2.0) is points[1]
    assert best_within_ms(points, [1.0, 3.0], 1.9) is points[0]
    with pytest.raises(ValueError, match=r"budget_ms=1 .*1\.2 ms"):
        best_within_ms(points, [1.0, 3.0], 1.0)


def test_the_runner_takes_a_budget_in_time(sound, pngs, capsys):
    assert main([str(sound), str(pngs), "--budget-ms=1e6", "--batch-size=4"]) == 0
    assert "budget 1e+06 ms" in capsys.readouterr().out


def test_lines_of_json_are_one_per_image(sound, pngs, capsys):
    options = ["--json", "--batch-size=2", "--thresholds=0,0,0"]
    assert main([str(sound), str(pngs), *options]) == 0
    found = capsys.readouterr()
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [row["exit"] for row in rows] == [1] * 5 and rows[0]["label"] in CLASSES
    assert all(row["ms"] > 0 for row in rows) and "5 images" in found.err


def test_without_pictures_it_says_what_the_folder_holds(sound, capsys):
    assert main([str(sound)]) == 0
    found = capsys.readouterr().out
    assert "3 exits, 5 classes (ant, bee" in found and "0.400" in found


def test_what_does_not_decode_is_named_and_skipped(sound, pngs, capsys):
    whole = (pngs / "0.png").read_bytes()
    (pngs / "1.png").write_bytes(whole[: len(whole) // 2])
    (pngs / "2.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 30)).save(pngs / "3.png")
    assert main([str(sound), str(pngs)]) == 1
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 6
    for named in ("1.png: not decoded", "2.png: not decoded (no picture)", "2 of 5 pictures"):
        assert named in found.err
    assert "1 of 3 pictures were not of 16 x 16" in found.err and "20 x 30" in found.err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--budget=0.1"], "available budgets: 0.400, 0.800"),
        (["--budget=0.5", "--thresholds=0,0,0"], "exclude each other"),
        (["--budget-ms=5", "--budget=0.5"], "exclude each other"),
        (["--budget-ms=0.000001", "--batch-size=4"], "budget_ms=1e-06"),
        (["--thresholds=0,0"], "3 exits"),
        (["--thresholds=0,x,0"], "expected numbers"),
        (["--batch-size=0"], "at least 1"),
        (["nowhere.png"], "nowhere.png: no such picture"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(sound, pngs, capsys, options, message):
    assert main([str(sound), str(pngs), *options]) == 2
    found = capsys.readouterr()
    assert message in found.err and len(found.err.splitlines()) == 1 and not found.out


def test_the_runner_needs_neither_flax_nor_the_training_code(sound, pngs, tmp_path):
    blocked = ["flax", "optax", "orbax", "tensorflow", "ml_collections"]
    blocked += ["imta_jax.training", "imta_jax.models"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from imta_jax.inference.command import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, sound, "--thresholds=0,0,0", pngs],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8 and not done.stderr
