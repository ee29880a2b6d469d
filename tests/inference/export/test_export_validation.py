"""Damaged, changed or incompatible exports raise with the invalid field or file."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from imta_jax.data import PaddedCrop, RandomAreaCrop
from imta_jax.inference import load_exported
from imta_jax.inference.export import loader
from imta_jax.inference.export.folder import CHECKSUMS, GOLDEN, MANIFEST, WEIGHTS, write_checksums

NAN, INF = float("nan"), float("inf")
CLASSES = ["ant", "bee", "cow", "dog", "eel"]
POINT = {
    "budget": 0.8,
    "thresholds": [0.9, 0.9, 0.0],
    "exit_fractions": [0.1, 0.1, 0.8],
    "validation_top1": 80.0,
    "top1": 79.0,
}


@pytest.fixture
def folder(exported_folder, tmp_path):
    return shutil.copytree(exported_folder, tmp_path / "copy")


def as_version_1(folder):
    """The fields of a manifest of format version 1."""
    fields = json.loads((folder / MANIFEST).read_text())["preprocessing"]
    names = ("description", "resize", "mean", "std")
    return {"format_version": 1, "preprocessing": {name: fields[name] for name in names}}


def change_manifest(folder, **changes):
    """Changes manifest fields and updates the checksums."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / CHECKSUMS).unlink()
    write_checksums(folder)


def test_truncated_changed_or_missing_file_is_rejected(exported_folder, tmp_path):
    names = sorted(path.name for path in exported_folder.iterdir() if path.is_file())
    assert len(names) == 12
    for number, name in enumerate(names):
        content = (exported_folder / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for kind, changed in (
            ("truncated", content[: len(content) // 2]),
            ("empty", b""),
            ("flipped", bytes(flipped)),
            ("missing", None),
        ):
            folder = shutil.copytree(exported_folder, tmp_path / f"{number}_{kind}")
            (folder / name).unlink()
            if changed is not None:
                (folder / name).write_bytes(changed)
            with pytest.raises(ValueError, match=rf"{name}|{CHECKSUMS}"):
                load_exported(folder)


@pytest.mark.parametrize("kind", ["stage", "images_last"])
@pytest.mark.parametrize(("replaced", "by", "named"), [(1, 0, 1), (0, 1, 1), (2, 1, 2)])
def test_a_stage_that_is_replaced_together_with_the_checksums_is_named(
    kind, replaced, by, named, folder
):
    content = (folder / f"{kind}_{by}.stablehlo").read_bytes()
    (folder / f"{kind}_{replaced}.stablehlo").write_bytes(content)
    (folder / CHECKSUMS).unlink()
    write_checksums(folder)
    with pytest.raises(ValueError, match=rf"{kind}_{named}\.stablehlo has the state float32"):
        load_exported(folder, check_golden=False)


def test_changed_checksum_names_both_files(folder):
    path = folder / CHECKSUMS
    digest = path.read_text()[0]
    path.write_text(("1" if digest == "0" else "0") + path.read_text()[1:])
    with pytest.raises(ValueError, match=rf"{GOLDEN} or {CHECKSUMS}"):
        load_exported(folder)


def test_manifest_with_another_checksum_is_rejected(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace("0.99", "0.98"))
    with pytest.raises(ValueError, match=f"{MANIFEST}.*SHA-256"):
        load_exported(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format_version": 4}, "format_version.*4.* 3"),
        ({"format_version": True}, "format_version.*True"),
        ({"format": "other"}, f"{MANIFEST}.*format"),
        ({"platforms": ["tpu"]}, r"platforms.*tpu.* cpu.*--platforms=tpu,cpu"),
        ({"calling_convention_version": 99}, "calling_convention_version.*99"),
        ({"stages": []}, f"{MANIFEST}.*stages"),
        ({"exits": []}, f"{MANIFEST}.*exits.*0.* 3"),
        ({"image_shape": []}, r"image_shape.*\[\].*\[16, 16, 1\]"),
        ({"class_names": []}, "class_names.*0.* 5"),
        ({"class_names": [*CLASSES, "fox"]}, "class_names.*6.* 5"),
        ({"operating_points": []}, "operating_points"),
        ({"operating_points": [POINT | {"thresholds": [1]}]}, r"thresholds.* 3 .*\[1\]"),
        ({"operating_points": [POINT | {"budget": None}]}, r"budget.*None"),
        ({"preprocessing": None}, "preprocessing.*None"),
        ({"preprocessing": {"mean": [0.5], "std": [1]}}, r"preprocessing\.\w+"),
        ({"class_names": None}, "TypeError"),
        ({"class_names": [1, 2, 3, 4, 5]}, r"class_names.*\[1, 2"),
        ({"dtype": "float16"}, "dtype.*bfloat16.*'float16'"),
        ({"platforms": "cpu"}, "platforms.*cpu"),
        ({"platforms": None}, "TypeError"),
        ({"versions": None, "calling_convention_version": 99}, "TypeError"),
        ({"calling_convention_version": "x"}, "TypeError"),
        ({"operating_points": [POINT | {"budget": 1.5}]}, r"budget.*1\.5"),
        ({"operating_points": [POINT | {"thresholds": [NAN, 0, 0]}]}, r"thresholds.*nan"),
        ({"operating_points": [POINT | {"thresholds": [INF, 0, 0]}]}, r"thresholds.*inf"),
        (
            {"operating_points": [POINT | {"exit_fractions": [0.9, 0.9, 0]}]},
            r"fractions.*0\.9, 0\.9",
        ),
        ({"operating_points": [POINT | {"top1": NAN}]}, r"top1.*nan"),
        ({"operating_points": [POINT | {"validation_top1": "80"}]}, "validation_top1.*80"),
    ],
)
def test_invalid_manifest_field_is_rejected(folder, changes, message):
    change_manifest(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_exported(folder)


def test_invalid_field_of_the_preprocessing_is_rejected_by_name(folder):
    fields = json.loads((folder / MANIFEST).read_text())["preprocessing"]
    for changes, message in [
        ({"resize": -5}, r"preprocessing\.resize.*-5"),
        ({"std": [INF]}, r"preprocessing\.std.*inf"),
        ({"mean": [True]}, r"preprocessing\.mean.*True"),
    ]:
        change_manifest(folder, preprocessing=fields | changes)
        with pytest.raises(ValueError, match=message):
            load_exported(folder)


def test_invalid_field_of_an_exit_is_rejected_by_name(folder):
    rows = json.loads((folder / MANIFEST).read_text())["exits"]
    macs = [row["macs"] for row in rows]
    for changed, message in [
        (
            [row | {"macs": m} for row, m in zip(rows, macs[::-1], strict=True)],
            r"exits\.macs",
        ),
        ([row | {"macs": NAN} for row in rows], r"exits\.macs.*nan"),
        ([row | {"params": -1} for row in rows], r"exits\.params.*-1"),
        ([row | {"top1": 101} for row in rows], r"exits\.top1.*101"),
        ([row | {"exit": 1} for row in rows], r"exits\.exit.*\[1, 1, 1\].*\[1, 2, 3\]"),
        ([{} for _ in rows], "KeyError"),
        ([[] for _ in rows], "TypeError"),
    ]:
        change_manifest(folder, exits=changed)
        with pytest.raises(ValueError, match=message):
            load_exported(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_rejected_by_name(folder, value):
    with np.load(folder / WEIGHTS) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["weight_0003"].flat[1] = value
    np.savez(folder / WEIGHTS, **arrays)
    change_manifest(folder)
    with pytest.raises(ValueError, match=rf"weights\.npz.*weight_0003.*{value}"):
        load_exported(folder)


def test_weights_that_are_not_finite_are_not_exported(classifier, export, tmp_path):
    broken = nnx.clone(classifier)
    state = jax.tree.map(lambda x: x * np.nan, nnx.state(broken, nnx.Param))
    nnx.update(broken, state)
    with pytest.raises(ValueError, match=r"weight_.*nan"):
        export(broken, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_rejected(folder):
    with np.load(folder / WEIGHTS) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["weight_0003"] = np.zeros((2, 2), np.float32)
    np.savez(folder / WEIGHTS, **arrays)
    change_manifest(folder)
    with pytest.raises(ValueError, match=r"weight_0003.*float32.*\(2, 2\)"):
        load_exported(folder)


def test_changed_weights_are_rejected_with_the_exits_that_differ(folder):
    with np.load(folder / WEIGHTS) as file:
        arrays = {name: file[name] for name in file.files}
    arrays = {name: array * np.float32(1.5) for name, array in arrays.items()}
    np.savez(folder / WEIGHTS, **arrays)
    change_manifest(folder)
    with pytest.raises(ValueError, match=r"golden\.npz.*exit 1.*check_golden=False"):
        load_exported(folder)
    assert load_exported(folder, check_golden=False).network.num_exits == 3


def test_changed_preprocessing_is_rejected(folder):
    fields = json.loads((folder / MANIFEST).read_text())["preprocessing"]
    change_manifest(folder, preprocessing=fields | {"mean": [0.1]})
    with pytest.raises(ValueError, match=r"golden\.npz.*exit 3"):
        load_exported(folder)


def test_golden_images_are_of_the_size_before_preprocessing(classifier, export, tmp_path):
    cases = {
        "padded": (PaddedCrop(2, True, source_size=(13, 16)), [(13, 16)] * 4),
        "resized": (RandomAreaCrop(16, 20, 0.1, True), [(20, 25), (25, 20), (20, 20), (25, 25)]),
    }
    for name, (preprocessing, sizes) in cases.items():
        folder = export(classifier, tmp_path / name, preprocessing=preprocessing)
        with np.load(folder / GOLDEN) as file:
            images = [file[f"image_{i}"] for i in range(4)]
            assert file["logits"].shape == (3, 4, 5)
        assert [image.shape[:2] for image in images] == sizes
        assert all(image.dtype == np.uint8 and image.std() > 20 for image in images)
        load_exported(folder)


def test_version_2_requires_golden_images_and_version_1_has_none(folder):
    (folder / GOLDEN).unlink()
    change_manifest(folder)
    with pytest.raises(ValueError, match=r"golden\.npz"):
        load_exported(folder)
    change_manifest(folder, **as_version_1(folder))
    assert load_exported(folder).transform.padding is None


def test_export_of_version_2_is_rejected_as_version_1(folder):
    (folder / GOLDEN).unlink()
    change_manifest(folder, format_version=1)
    with pytest.raises(
        ValueError, match=r"preprocessing\.exif_orientation.*format_version is 1.* 2"
    ):
        load_exported(folder)


def test_wrong_weights_of_the_programs_for_larger_batches_are_rejected(folder):
    """Their names differ from those of the other programs."""
    manifest = json.loads((folder / MANIFEST).read_text())
    by_form = [
        {name for stage in manifest[form] for name in stage["weights"]}
        for form in ("stages", "images_last")
    ]
    own = by_form[1] - by_form[0]
    with np.load(folder / WEIGHTS) as file:
        arrays = {name: file[name] * np.float32(name not in own) for name in file.files}
    np.savez(folder / WEIGHTS, **arrays)
    change_manifest(folder)
    with pytest.raises(ValueError, match=r"golden\.npz.*larger batches.*exit 1"):
        load_exported(folder)


def test_golden_images_are_checked_whatever_the_version_says(folder):
    with np.load(folder / WEIGHTS) as file:
        arrays = {name: file[name] * np.float32(1.5) for name in file.files}
    np.savez(folder / WEIGHTS, **arrays)
    change_manifest(folder, **as_version_1(folder))
    with pytest.raises(ValueError, match=r"golden\.npz.*exit 1"):
        load_exported(folder)


def test_export_that_is_replaced_while_it_is_loaded_is_loaded_again(
    classifier, export, folder, tmp_path, monkeypatch
):
    other = export(classifier, tmp_path / "other", platforms=("cpu",), class_names=list("abcde"))
    read_weights, calls = loader._read_weights, []

    def replace_and_read(*arguments):
        calls.append(arguments)
        if len(calls) == 1:  # the manifest is read, the weights are not
            folder.rename(tmp_path / "former")
            other.rename(folder)
        return read_weights(*arguments)

    monkeypatch.setattr(loader, "_read_weights", replace_and_read)
    exported = load_exported(folder, check_golden=False)
    assert exported.class_names == tuple("abcde") and len(calls) > 1


def test_weights_are_read_without_pickle(folder):
    np.savez(folder / WEIGHTS, weight_0000=np.asarray([{}], object))
    change_manifest(folder)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_exported(folder)


def test_file_that_is_not_a_program_is_rejected(folder):
    (folder / "stage_1.stablehlo").write_bytes(b"not a program" * 9)
    change_manifest(folder)
    with pytest.raises(ValueError, match=r"stage_1\.stablehlo.*jax"):
        load_exported(folder)


def test_folder_that_is_not_an_export_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=MANIFEST):
        load_exported(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_exported(tmp_path / "nowhere")


def test_folder_of_a_run_is_rejected_with_the_export_command(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"imta-jax export {tmp_path} FOLDER"):
        load_exported(tmp_path)
