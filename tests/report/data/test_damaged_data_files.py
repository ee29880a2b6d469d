"""Files of the report of a dataset that are missing, damaged or inconsistent."""

import numpy as np
import pytest
from dataset_samples import changed, write_data

from imta_jax import report


@pytest.mark.parametrize("name", ["summary.json", "preview.npz"])
def test_a_missing_file_is_named_with_the_command_that_writes_it(tmp_path, name):
    folder = write_data(tmp_path / "data")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*--workdir={tmp_path} --mode=data"):
        report.write_data_page(folder)


@pytest.mark.parametrize("name", ["summary.json", "preview.npz"])
@pytest.mark.parametrize("keep", [0, 1, 20, 300])
def test_a_truncated_file_is_rejected(tmp_path, name, keep):
    folder = write_data(tmp_path / "data")
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name}.*--workdir={tmp_path} --mode=data"):
        report.write_data_page(folder)
    assert not (folder / "index.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("pipeline"), "pipeline"),
        (lambda s: s["splits"].pop("test"), "test"),
        (
            lambda s: s["splits"]["train"]["per_class"].pop(),
            r"train\.per_class.*10.*\b9",
        ),
        (
            lambda s: s["splits"]["test"]["per_class"].__setitem__(0, -1),
            r"test\.per_class.*-1",
        ),
        (lambda s: s["splits"]["train"].update(examples=None), "NoneType"),
        (lambda s: s["splits"]["train"].update(examples=float("inf")), "infinity"),
        (lambda s: s["statistics"].update(mean=[0.1, 0.2]), r"statistics.*\b2\b.*\b1\b"),
        (lambda s: s["pipeline"].update(seconds=float("nan")), "pipeline.*nan"),
        (lambda s: s.update(image_shape=[32, 32]), "unpack"),
        (lambda s: s.update(class_names=[]), "class_names"),
    ],
)
def test_an_incomplete_or_inconsistent_summary_is_rejected(tmp_path, change, message):
    folder = write_data(tmp_path / "data")
    changed(folder, change)
    with pytest.raises(ValueError, match=rf"summary\.json.*{message}.*--mode=data"):
        report.write_data_page(folder)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": np.zeros((48, 32, 32, 1), np.float32)}, "float32"),
        ({"train_images": np.zeros((48, 32, 32), np.uint8)}, "uint8.*found uint8"),
        ({"validation_images": np.zeros((20, 32, 32, 2), np.uint8)}, "uint8.*found uint8"),
        ({"validation_images": np.zeros((0, 32, 32, 1), np.uint8)}, "empty"),
        ({"train_labels": np.zeros(47, int)}, r"train_labels.*48.*int64.*47"),
        ({"train_labels": np.full(48, 10)}, "train_labels.* 9.*10"),
        ({"train_labels": None}, "train_labels"),
    ],
)
def test_an_inconsistent_preview_is_rejected(tmp_path, arrays, message):
    folder = write_data(tmp_path / "data")
    with np.load(folder / "preview.npz") as archive:
        changed_arrays = {**archive, **arrays}
    kept = {name: array for name, array in changed_arrays.items() if array is not None}
    np.savez(folder / "preview.npz", **kept)
    with pytest.raises(ValueError, match=rf"preview\.npz.*{message}.*--mode=data"):
        report.write_data_page(folder)


def test_a_preview_with_altered_bytes_is_read_or_rejected(tmp_path):
    folder, rng = write_data(tmp_path / "data", shown=(2, 1)), np.random.default_rng(0)
    original = np.frombuffer((folder / "preview.npz").read_bytes(), np.uint8)
    for _ in range(200):
        altered = original.copy()
        altered[rng.integers(len(original), size=3)] = rng.integers(256, size=3)
        (folder / "preview.npz").write_bytes(altered.tobytes())
        try:
            report.load_data_record(folder)
        except ValueError as error:
            assert "preview.npz" in str(error)
