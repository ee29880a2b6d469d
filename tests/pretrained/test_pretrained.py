"""Pretrained networks in the package: size, metadata, accuracy and file format."""

import json

import chex
import numpy as np
import pytest
import tiny_run
from flax import nnx

import imta_jax.pretrained as pretrained
from imta_jax.data import load_dataset
from imta_jax.evaluation import anytime_accuracy, collect_predictions
from imta_jax.models import build_classifier
from imta_jax.training import loading
from imta_jax.training.network_arrays import AnotherNetworkError, fill_named
from imta_jax.training.state import named_arrays

MAX_BYTES = 10_000_000


def test_files_are_small_enough_to_ship():
    files = list(pretrained._FOLDER.glob("*.npz"))
    assert files and sum(path.stat().st_size for path in files) < MAX_BYTES


@pytest.mark.parametrize("name", pretrained.pretrained_names())
def test_metadata_and_results_fit_the_network(name):
    actual = pretrained.load_pretrained(name)
    exits = actual.results["exits"]
    assert len(exits) == actual.classifier.num_exits
    assert actual.classifier.num_classes == len(actual.meta["class_names"])
    assert actual.meta["note"] and actual.results["dataset"]["examples"]["test"] >= 2000
    assert all(len(point["thresholds"]) == len(exits) for point in actual.results["budget_curve"])


def test_quickstart_network_reaches_its_recorded_accuracy():
    actual = pretrained.load_pretrained("quickstart")
    from configs import quickstart

    dataset = load_dataset(quickstart.get_config().data.to_dict())
    pixels = {name: actual.meta[name] for name in ("mean", "std")}
    test = collect_predictions(actual.classifier, dataset.splits["test"], batch_size=400, **pixels)
    recorded = [exit_["top1"] for exit_ in actual.results["exits"]]
    # Rounding differs between machines and may change the class of 2 of the 2,000 images.
    np.testing.assert_allclose(anytime_accuracy(test), recorded, atol=0.11)


def test_unknown_name_raises_with_the_valid_names():
    with pytest.raises(ValueError, match=r"'quickstat'.*: quickstart"):
        pretrained.load_pretrained("quickstat")


def write_changed(path, to, change):
    """Writes a copy of an .npz after `change` modified its arrays."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(to, **arrays)
    return to


def test_damaged_or_other_files_raise(tmp_path):
    path = pretrained._FOLDER / "quickstart.npz"
    cut = tmp_path / "cut.npz"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.npz"):
        pretrained.read_pretrained(cut)
    lacking = write_changed(path, tmp_path / "less.npz", lambda a: a.pop(next(iter(a))))
    with pytest.raises(ValueError, match=r"backbone\."):
        pretrained.read_pretrained(lacking)
    other = tmp_path / "other.npz"
    np.savez(other, logits=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz"):
        pretrained.read_pretrained(other)
    with pytest.raises(FileNotFoundError):
        pretrained.read_pretrained(tmp_path / "none.npz")


def test_named_arrays_fill_only_a_network_of_their_shapes():
    one, other = (
        build_classifier(
            tiny_run.NETWORK, num_classes=3, image_shape=(16, 16, 1), rngs=nnx.Rngs(seed)
        )
        for seed in (0, 1)
    )
    arrays = named_arrays(nnx.state(one))
    fill_named(other, arrays)
    chex.assert_trees_all_equal(named_arrays(nnx.state(other)), arrays)
    wider = tiny_run.NETWORK | {"channels": 8}
    third = build_classifier(wider, num_classes=3, image_shape=(16, 16, 1), rngs=nnx.Rngs(0))
    with pytest.raises(AnotherNetworkError, match=r"backbone\.\S+.*\(8,\).*\(4,\)"):
        fill_named(third, arrays)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 0), ("float16", 5e-4)])
def test_written_network_is_read_unchanged(tmp_path, dtype, close):
    source = pretrained.load_pretrained("quickstart")
    workdir, path = tmp_path / "run", tmp_path / "again.npz"
    workdir.mkdir()
    results = source.results | {"threshold_methods": None}
    (workdir / "results.json").write_text(json.dumps(results))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_classifier", lambda folder: source[:2])
        pretrained.write_pretrained(workdir, path, dtype=dtype, note="mine")
    actual = pretrained.read_pretrained(path)
    assert actual.meta == source.meta | {"note": "mine"} and actual.results == source.results
    found_arrays, expected_arrays = (
        named_arrays(nnx.state(network.classifier, nnx.Param)) for network in (actual, source)
    )
    rtol = 1e-3 if close else 0
    chex.assert_trees_all_close(found_arrays, expected_arrays, atol=close, rtol=rtol)


def test_damaged_results_are_named_before_the_network_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json.*--mode=evaluate"):
        pretrained.write_pretrained(tmp_path, tmp_path / "new.npz", note="")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json must hold a JSON object.*evaluate"):
        pretrained.write_pretrained(tmp_path, tmp_path / "new.npz", note="")
