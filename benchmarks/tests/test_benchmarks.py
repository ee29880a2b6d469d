"""The input-pipeline benchmark and the shared measurement code. Times are not tested."""

import json
import os
import sys

import jax
import numpy as np
import pytest
from tiny_run import run_config, tiny_config, write_dataset

from benchmarks import image_files, input_pipeline, measurement, result_file
from imta_jax.runtime.environment import usable_cores

TINY = {"images": 10, "batch_size": 4, "rounds": 1, "step_rounds": 1, "block": 1}
TINY |= {"memory_batch_size": 4, "memory_batches": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return image_files.make_jpegs(tmp_path_factory.mktemp("image_files"), count=10)


@pytest.fixture(scope="module")
def dataset(files, tmp_path_factory):
    root = image_files.link_tree(files, tmp_path_factory.mktemp("linked"), images=10)
    return image_files.load_image_folder(root)


def test_pillow_gives_the_same_images_as_our_pipeline(dataset):
    ours, pillow = (
        np.concatenate(list(image_files.CONTENDERS[name](dataset, 4, epoch=3)))
        for name in ("ours", "pillow")
    )
    assert ours.shape == pillow.shape == (8, 224, 224, 3)
    assert ours.dtype == pillow.dtype == np.uint8
    difference = np.abs(ours.astype(int) - pillow).mean(axis=(1, 2, 3))
    assert difference.max() < 3
    # A flipped image differs much more.
    assert np.abs(ours[:, :, ::-1].astype(int) - pillow).mean() > 10


def test_bare_decode_decodes_the_same_crops(dataset):
    shapes = np.concatenate(list(image_files.CONTENDERS["bare_decode"](dataset, 4, epoch=3)))
    _, indices = image_files.drawn_indices(dataset, 4, epoch=3)
    np.testing.assert_array_equal(shapes[:, :2], indices.window[:, 2:])
    assert (shapes[:, 2] == 3).all()


def test_entropy_decode_returns_images_of_an_eighth_of_the_size(dataset):
    shapes = np.concatenate(list(image_files.CONTENDERS["entropy_decode"](dataset, 4, epoch=3)))
    assert shapes.tolist() == [[47, 63, 1]] * 8


def test_all_feeds_return_the_same_batches(tmp_path):
    config = run_config(write_dataset(tmp_path / "tiny.npz"))
    feeds, state = input_pipeline.training_feeds(config)
    assert list(feeds) == ["constant", "device", "cutting", "numpy"]
    constant, indices, again, *others = (next(iter(feed.items(0, 0))) for feed in feeds.values())
    cut = jax.tree.map(lambda several: several[0], feeds["cutting"].advance(state, again)[1])
    for batch in (cut, *others):
        np.testing.assert_array_equal(batch.images, constant.images)
    np.testing.assert_array_equal(indices.index[0], constant.index)


def test_contenders_take_turns_and_the_first_round_does_not_count():
    seen = []
    measure = {name: lambda r, n=name: seen.append(n + str(r)) or r for name in "ab"}
    seconds = measurement.take_turns(measure, rounds=2)
    assert seen == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert {name: values.tolist() for name, values in seconds.items()} == {"a": [1, 2], "b": [1, 2]}


def test_in_own_process_runs_in_another_process():
    assert measurement.in_own_process(os.getpid) != os.getpid()


def test_the_script_writes_rows_summary_and_targets(files, tmp_path, monkeypatch, capsys):
    data = write_dataset(tmp_path / "tiny.npz")
    smallest = {"num_exits": 1, "growth_factors": (1,), "bottleneck_factors": (1,)}
    config = tiny_config(data, **{f"model__{k}": v for k, v in smallest.items()})
    monkeypatch.setattr(input_pipeline.cifar10, "get_config", lambda: config)
    monkeypatch.setattr(input_pipeline, "QUICK", TINY)
    # A fresh process would import everything again.
    monkeypatch.setattr(measurement, "in_own_process", lambda function, *args: function(*args))
    # This process must not be limited to fewer cores.
    bound = []
    monkeypatch.setattr(image_files.os, "sched_setaffinity", lambda _, cores: bound.append(cores))
    folder, out = tmp_path / "given", tmp_path / "result.json"
    image_files.link_tree(files, folder, images=8)
    flags = {"out": out, "images": folder, "images-name": "JPEGs of a test", "cifar": data}
    monkeypatch.setattr(sys, "argv", ["", "--quick", *(f"--{k}={v}" for k, v in flags.items())])
    input_pipeline.main()
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    assert {"hardware", "versions", "seeds", "data", "network", "targets"} <= result.keys()
    assert result["data"] == {
        "imagenet": "16 JPEGs of a test, median 375 x 500 pixels",
        "cifar": "an .npz",
    }
    all_cores = usable_cores()
    parts = [f"imagenet, cores: {cores}" for cores in sorted({1, all_cores}) for _ in range(4)]
    parts += ["cifar"] * 4 + ["memory"]
    assert [row["part"] for row in result["rows"]] == parts
    assert [len(cores) for cores in bound] == sorted({1, all_cores})
    assert {row["contender"] for row in result["rows"][:4]} == set(image_files.CONTENDERS)
    summary = result["summary"]
    assert result["targets"].keys() < summary.keys()
    for name, spread in summary["spread"].items():
        assert summary[name] == spread["median"] and name in printed
        assert spread["least"] <= spread["median"] <= spread["most"]
    memory = result["rows"][-1]
    assert 0 < memory["after_imports_gb"] <= memory["peak_of_indexing_gb"] <= memory["peak_gb"]
    assert memory["batches"] == 2 and summary["memory_peak_gb"] == memory["peak_gb"]
    assert str(tmp_path) not in out.read_text()


def test_a_preloaded_allocator_is_recorded_by_name_without_its_path(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert result_file.preloaded_allocator() == {}
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    monkeypatch.setenv("MALLOC_CONF", "thp:always")
    assert result_file.preloaded_allocator() == {"preloaded": "libjemalloc.so.2 thp:always"}
