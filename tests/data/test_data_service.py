"""The tf.data service gives the same batches as the local host."""

from pathlib import Path

import chex
import numpy as np
import pytest
import tiny_run
from PIL import Image

from imta_jax.data import (
    NO_AUGMENTATION,
    HostPipeline,
    RandomAreaCrop,
    Split,
    eval_batches,
    load_dataset,
    train_batches,
)
from imta_jax.data.pipeline import tf_pipeline

CROP = {"preprocessing": "random_area_crop", "image_size": 24, "resize": 28, "min_area": 0.2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 23), ("test", 7)):
        for i in range(count):
            folder = root / split / f"class_{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
            coarse.resize((50 + i, 40), Image.BILINEAR).save(folder / f"{i}.jpg", quality=95)
    fields = {"source": str(root), "validation_examples": 4, "validation_seed": 0, "flip": True}
    return load_dataset({**CROP, **fields})


@pytest.fixture(scope="module")
def service():
    import tensorflow as tf

    servers = tf.data.experimental.service
    dispatcher = servers.DispatchServer()
    address = dispatcher.target.split("://")[1]
    workers = [servers.WorkerServer(servers.WorkerConfig(address)) for _ in range(2)]
    yield dispatcher.target
    del workers


def test_two_workers_give_the_batches_of_the_local_host_in_order(dataset, service):
    split, arguments = dataset.splits["train"], {"batch_size": 3, "seed": 1, "epoch": 2}
    assert isinstance(dataset.preprocessing, RandomAreaCrop)
    local = list(train_batches(split, dataset.preprocessing, **arguments))
    remote = train_batches(
        split, dataset.preprocessing, **arguments, host=HostPipeline(service=service)
    )
    chex.assert_trees_all_equal(list(remote), local, strict=True)


def test_eval_batches_of_the_service_contain_each_image_once(dataset, service):
    split = dataset.splits["test"]
    batches = list(
        eval_batches(split, dataset.preprocessing, 4, host=HostPipeline(service=service))
    )
    index = np.concatenate([batch.index[batch.mask] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(7))


@pytest.mark.parametrize("damage", ["half", "removed"])
def test_an_error_of_a_worker_names_the_file(damage, dataset, service, monkeypatch):
    split = dataset.splits["test"]
    path = Path(split.images.path(3).decode())
    content = path.read_bytes()
    path.unlink()
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(OSError, match=rf"{path}: now (rejected|unreadable)"):
            list(eval_batches(split, dataset.preprocessing, 4, host=HostPipeline(service=service)))
        with monkeypatch.context() as patch, pytest.raises(OSError, match=f"while reading.*{path}"):
            patch.setattr(tf_pipeline, "find_changed", lambda *_: [])  # as after a moment
            list(eval_batches(split, dataset.preprocessing, 4, host=HostPipeline(service=service)))
    finally:
        path.write_bytes(content)


def test_service_for_arrays_raises(service):
    images, labels = tiny_run.draw_images(8, 0)
    split = Split(images, labels.astype(np.int32), np.arange(8))
    with pytest.raises(ValueError, match=r"config\.data\.service.*grpc://"):
        list(
            eval_batches(
                split, NO_AUGMENTATION, 4, pipeline="tf_data", host=HostPipeline(service=service)
            )
        )


def test_unreachable_service_raises_at_once(dataset):
    unreachable = HostPipeline(service="grpc://localhost:9")
    with pytest.raises(ConnectionError, match=r"config\.data\.service.*localhost:9"):
        next(eval_batches(dataset.splits["test"], dataset.preprocessing, 4, host=unreachable))
