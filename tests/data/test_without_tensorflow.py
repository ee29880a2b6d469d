"""Datasets of arrays without TensorFlow."""

import subprocess
import sys
from pathlib import Path

WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import imta_jax.data as data

fields = dict(data_dir="", download=False, validation_examples=100, validation_seed=0)
crop = dict(preprocessing="random_area_crop", image_size=16, resize=20)
crop |= dict(min_area=0.5, flip=True)
dataset = data.load_dataset(dict(source="fashion_mnist_small", **fields))
split, view = dataset.splits["validation"], dataset.preprocessing
assert len(list(data.train_batches(split, view, batch_size=30, seed=0, epoch=0))) == 3
assert len(list(data.eval_batches(split, view, 30))) == 4
assert len(list(data.eval_batches(split, view, 30, pipeline="tf_data"))) == 4
for attempt in (
    lambda: data.load_dataset(dict(source="cifar10", **fields)),
    lambda: data.load_dataset(dict(source="fashion_mnist_small", **crop, **fields)),
):
    try:
        attempt()
    except ModuleNotFoundError as error:
        print(error)
    else:
        raise SystemExit("no error without TensorFlow")
"""


def test_arrays_need_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    source, resized = done.stdout.splitlines()
    assert "TensorFlow" in resized and "imta_jax[tfds]" in resized
    assert "'cifar10'" in source and "TensorFlow Datasets" in source
    assert "fashion_mnist_small, a path ending in .npz" in source
