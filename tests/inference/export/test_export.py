"""Exports: the predictions of the original network, atomic writes, and exports of runs."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess

import jax
import numpy as np
import pytest
import tiny_run

from imta_jax.cli.run import run
from imta_jax.errors import StorageError
from imta_jax.evaluation import confidence, exit_costs
from imta_jax.inference import (
    AdaptiveClassifier,
    OperatingPoint,
    export_run,
    load_exported,
    staged_classifier,
)
from imta_jax.inference.export import run_export, stablehlo_folder
from imta_jax.inference.export.folder import CHECKSUMS, MANIFEST, replacing_folder

PIXELS = {"mean": (0.4,), "std": (0.3,)}
PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture
def folder(exported_folder, tmp_path):
    return shutil.copytree(exported_folder, tmp_path / "copy")


def test_full_disk_is_reported_with_the_folder_and_leaves_no_file(tmp_path):
    size, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            pytest.raises(StorageError, match=rf"written to {tmp_path}/export \(File too large\)"),
            replacing_folder(tmp_path / "export") as partial,
        ):
            np.savez(partial / "weights.npz", np.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, dtype", [("I", "float32"), ("II", "float32"), ("II", "bfloat16")])
def test_exported_network_gives_the_predictions_of_the_original(
    phase_one, classifier, images, export, name, dtype, tmp_path
):
    classifier = {"I": phase_one, "II": classifier}[name]
    exported = load_exported(export(classifier, tmp_path / "export", dtype=dtype))
    options = {"max_batch_size": 16, "batch_sizes": (16,), "num_workers": 1}
    original = AdaptiveClassifier(classifier, [0, 0, 0], dtype=dtype, **PIXELS, **options)
    # With the median confidence of each exit as its threshold, images leave at every exit.
    thresholds = np.median(confidence(original.logits(images)), axis=1)
    expected = original.with_thresholds(thresholds).predict(images)
    loaded = AdaptiveClassifier(exported.network, thresholds, **options).predict(images)
    assert len(np.unique(expected.exit)) == 3
    np.testing.assert_array_equal(loaded.labels, expected.labels)
    np.testing.assert_array_equal(loaded.exit, expected.exit)
    np.testing.assert_array_equal(loaded.macs, exit_costs(classifier).macs[loaded.exit])
    np.testing.assert_allclose(loaded.confidence, expected.confidence, atol=1e-6)


def test_exported_programs_take_any_batch_size_and_uint8_or_floats(
    classifier, exported_folder, images
):
    original = staged_classifier(classifier, **PIXELS)
    network = load_exported(exported_folder).network
    floats = ((images / np.float32(255) - 0.4) / 0.3).astype(np.float32)
    expected = np.asarray(jax.jit(original.logits)(original.weights, images[:7]))
    for count in (1, 3, 7):
        for batch in (images[:count], floats[:count]):
            logits = jax.jit(network.logits)(network.weights, batch)
            np.testing.assert_allclose(logits, expected[:, :count], atol=1e-5)


def test_programs_are_compiled_for_the_requested_platforms(
    classifier, export, exported_folder, tmp_path
):
    def programs(folder):
        paths = sorted(folder.glob("stage_*.stablehlo"))
        return [jax.export.deserialize(bytearray(path.read_bytes())) for path in paths]

    only_cpu = programs(export(classifier, tmp_path / "cpu", platforms=("cpu",)))
    assert all(program.platforms == ("cpu",) for program in only_cpu)
    all_platforms = programs(exported_folder)
    assert len(all_platforms) == 3
    assert all(program.platforms == PLATFORMS for program in all_platforms)
    # The implementation of a narrow convolution depends on the platform. All are exported.
    several, one = (of[0].mlir_module().count("convolution") for of in (all_platforms, only_cpu))
    assert several > one > 0


def test_manifest_has_costs_classes_and_preprocessing(classifier, exported_folder):
    manifest = json.loads((exported_folder / MANIFEST).read_text())
    assert [row["macs"] for row in manifest["exits"]] == exit_costs(classifier).macs.tolist()
    assert manifest["class_names"] == ["ant", "bee", "cow", "dog", "eel"]
    assert manifest["preprocessing"]["resize"] is None


def test_checksums_are_readable_by_sha256sum(exported_folder):
    command = ["sha256sum", "-c", CHECKSUMS]
    assert subprocess.run(command, cwd=exported_folder, capture_output=True).returncode == 0


def test_only_an_earlier_export_is_overwritten_and_only_on_request(
    classifier, export, folder, tmp_path
):
    cheap = load_exported(folder).points[0]
    with pytest.raises(FileExistsError, match=r"copy.*overwrite"):
        export(classifier, folder)
    export(classifier, folder, overwrite=True, points=[cheap])
    assert load_exported(folder).points == (cheap,)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="other"):
        export(classifier, other, overwrite=True)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_an_export_deletes_what_a_killed_one_left(classifier, export, tmp_path):
    (tmp_path / f".out.{os.getpid()}0000000.partial").mkdir()
    (tmp_path / ".out.1.partial").mkdir()
    (tmp_path / ".another.99999999.partial").mkdir()
    export(classifier, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".another.99999999.partial",
        ".out.1.partial",
        "out",
    ]


def test_failed_export_keeps_the_earlier_one(classifier, export, folder, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("no space left")

    names = sorted(path.name for path in folder.parent.iterdir())
    points = load_exported(folder).points
    monkeypatch.setattr(stablehlo_folder, "write_json", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export(classifier, folder, overwrite=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == names
    assert load_exported(folder).points == points


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"platforms": ("gpu",)}, r"platform 'gpu'.*cuda"),
        ({"platforms": ()}, "platforms.*cpu"),
        ({"dtype": "float16"}, r"dtype 'float16'.*bfloat16"),
        ({"class_names": ["ant"]}, r"class_names.*5 .*\b1"),
        ({"mean": (0.1, 0.2, 0.3)}, r"mean.*1 .*\b3"),
        ({"points": []}, "points"),
        (
            {"points": [OperatingPoint(1.0, (0.5,), (1.0,), 1.0, 1.0)]},
            r"thresholds.*3 .*\b1",
        ),
    ],
)
def test_invalid_argument_raises_before_anything_is_written(
    classifier, export, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        export(classifier, tmp_path / "export", **changes)
    assert not list(tmp_path.iterdir())


# Exports of runs.


@pytest.fixture(scope="module")
def workdir(source, tmp_path_factory, compilation_cache):
    """A finished run of one epoch. Tests must not change it."""
    root = tmp_path_factory.mktemp("run")
    config = tiny_run.tiny_config(source, phase_one__total_epochs=1, phase_two__total_epochs=0)
    for mode in ("phase_one", "evaluate"):
        run(config, root / "run", mode)
    return root / "run"


@pytest.fixture(scope="module")
def run_export_folder(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run_export") / "export"
    export_run(workdir, folder, platforms=("cpu",))
    return folder


def test_exported_run_has_the_points_of_its_evaluation(workdir, run_export_folder):
    exported = load_exported(run_export_folder)
    results = json.loads((workdir / "results.json").read_text())
    for reported in results["reported_budgets"]:
        point = exported.point_for(reported["budget"])
        assert list(point.thresholds) == reported["thresholds"]
        assert point.top1 == reported["top1"]
    assert exported.manifest["origin"]["phase"] == "phase_one"


def test_from_run_and_from_export_use_the_reported_thresholds(workdir, run_export_folder):
    results = json.loads((workdir / "results.json").read_text())
    images = tiny_run.draw_images(20, seed=3)[0]
    for reported in results["reported_budgets"]:
        budget, options = reported["budget"], {"max_batch_size": 32}
        from_run = AdaptiveClassifier.from_run(workdir, budget=budget, **options)
        from_export = AdaptiveClassifier.from_export(run_export_folder, budget=budget, **options)
        for adaptive in (from_run, from_export):
            thresholds = np.asarray(reported["thresholds"], np.float32)
            np.testing.assert_array_equal(adaptive.thresholds, thresholds)
            assert adaptive.max_batch_size == 32
        expected, predictions = from_run.predict(images), from_export.predict(images)
        np.testing.assert_array_equal(predictions.exit, expected.exit)
        np.testing.assert_array_equal(predictions.labels, expected.labels)


def test_from_run_and_from_export_reject_a_budget_below_all_points(workdir, run_export_folder):
    with pytest.raises(ValueError, match=r"budget.*0\.001"):
        AdaptiveClassifier.from_run(workdir, budget=0.001)
    with pytest.raises(ValueError, match=r"budget.*0\.001"):
        AdaptiveClassifier.from_export(run_export_folder, budget=0.001)


def test_results_of_another_network_or_checkpoint_are_rejected(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    results = json.loads((copy / "results.json").read_text())
    macs = results["exits"][0]["macs"]
    results["exits"][0]["macs"] += 1
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"exits\.macs.*{macs + 1}.*{macs}"):
        export_run(copy, tmp_path / "export")
    results["phases"]["phase_one"]["checkpoint_epoch"] = 7
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"checkpoint_epoch.*phase_one.*7.*1"):
        AdaptiveClassifier.from_run(copy)


def test_unfinished_run_is_rejected_with_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        AdaptiveClassifier.from_run(tmp_path)


def test_checkpoint_without_the_transform_takes_the_padding_from_the_dataset(workdir, caplog):
    from imta_jax.inference import finished_run

    run = finished_run.load_finished_run(workdir)
    assert run.transform.source_size == (16, 16)
    meta = {name: value for name, value in run.meta.items() if name != "evaluation_transform"}
    assert finished_run._transform(run.config.data, meta) == run.transform
    elsewhere = dataclasses.replace(run.config.data, source="/nowhere/data.npz")
    assert finished_run._transform(elsewhere, meta).source_size == (16, 16)
    assert "config.data.source=/nowhere/data.npz" in caplog.text and "(16, 16, 1)" in caplog.text


def test_export_command_prints_folder_and_platforms(workdir, tmp_path, capsys):
    run_export.main([str(workdir), str(tmp_path / "export"), "--platforms=cpu"])
    printed = capsys.readouterr().out
    assert str(tmp_path / "export") in printed and "for cpu" in printed
    assert load_exported(tmp_path / "export").network.num_exits == 2


def test_export_command_chooses_thresholds_again_for_int8_weights(workdir, tmp_path, capsys):
    folder = tmp_path / "export"
    run_export.main([str(workdir), str(folder), "--format=onnx", "--weights=int8"])
    assert f"{folder}: " in capsys.readouterr().out
    manifest = json.loads((folder / "manifest.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    assert manifest["weights"] == "int8"
    exported = {tuple(point["thresholds"]) for point in manifest["operating_points"]}
    assert not exported & {tuple(row["thresholds"]) for row in results["budget_curve"][:-1]}
    for row, expected in zip(manifest["exits"], results["exits"], strict=True):
        assert row["macs"] == expected["macs"]
        assert abs(row["validation_top1"] - expected["validation_top1"]) < 10
    card = (folder / "README.md").read_text()
    assert "phase_one: epochs 1" in card and "Weights: int8" in card


def test_export_command_exits_with_2_on_an_unfinished_run(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_export.main([str(tmp_path), str(tmp_path / "export")])
    assert "config.json" in capsys.readouterr().err
