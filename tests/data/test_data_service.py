"""The tf.data service: other machines decode, and the batches are the same."""

import numpy as np
import pytest
import tiny_run
from PIL import Image

from imta_jax.data import HostPipeline, RandomAreaCrop, eval_batches, load_dataset, train_batches

CROP = {"preprocessing": "random_area_crop", "image_size": 24, "resize": 28, "min_area": 0.2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
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


def test_two_workers_make_the_batches_of_one_host_in_their_order(dataset, service):
    split, arguments = dataset.splits["train"], {"batch_size": 3, "seed": 1, "epoch": 2}
    assert isinstance(dataset.preprocessing, RandomAreaCrop)
    here = list(train_batches(split, dataset.preprocessing, **arguments))
    there = train_batches(
        split, dataset.preprocessing, **arguments, host=HostPipeline(service=service)
    )
    tiny_run.assert_same(list(there), here)


def test_evaluation_through_the_service_counts_each_image_once(dataset, service):
    split = dataset.splits["test"]
    batches = list(
        eval_batches(split, dataset.preprocessing, 4, host=HostPipeline(service=service))
    )
    index = np.concatenate([batch.index[batch.mask] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(7))


def test_arrays_in_memory_are_not_sent_to_the_service(service):
    images, labels = tiny_run.draw_images(8, 0)
    from imta_jax.data import NO_AUGMENTATION, Split

    split = Split(images, labels.astype(np.int32), np.arange(8))
    with pytest.raises(ValueError, match=r"config\.data\.service is for images that are read"):
        list(
            eval_batches(
                split, NO_AUGMENTATION, 4, pipeline="tf_data", host=HostPipeline(service=service)
            )
        )


def test_a_service_that_is_not_there_is_refused_at_once(dataset):
    nobody = HostPipeline(service="grpc://localhost:9")
    with pytest.raises(ConnectionError, match=r"no tf\.data service at .*localhost:9"):
        next(eval_batches(dataset.splits["test"], dataset.preprocessing, 4, host=nobody))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory_limit_gb": 0}, "memory_limit_gb is 0, expected above 0"),
        ({"service": "localhost:5000"}, "expected e.g. grpc://host:5000"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HostPipeline(**fields)
