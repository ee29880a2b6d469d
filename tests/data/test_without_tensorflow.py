"""Datasets of arrays and of image files without TensorFlow."""

import subprocess
import sys
from pathlib import Path

from sample_images import make_image, write

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
resized = data.load_dataset(dict(source="fashion_mnist_small", **crop, **fields))
batch = next(data.eval_batches(resized.splits["validation"], resized.preprocessing, 4))
assert batch.images.shape == (4, 16, 16, 1) and batch.images.any()
files = data.load_dataset(dict(source=sys.argv[1], index_dir="", **crop, **fields | HELD_OUT))
assert files.decoder == "pillow"
split, view = files.splits["train"], files.preprocessing
assert next(data.train_batches(split, view, batch_size=4, seed=0, epoch=0)).images.any()
sources = ("auto", "cifar10"), ("tf_data", sys.argv[1]), ("auto", "gs://bucket/images")
for pipeline, source in sources:
    try:
        data.load_dataset(dict(source=source, pipeline=pipeline, **crop, **fields))
    except ModuleNotFoundError as error:
        print(error)
    else:
        raise SystemExit("no error without TensorFlow")
"""


def test_arrays_and_image_files_need_no_tensorflow(tmp_path):
    names = [f"{split}/{k}/{i}.jpg" for split in ("train", "test") for k in "ab" for i in range(4)]
    write(tmp_path, {name: make_image(40, 50, i) for i, name in enumerate(names)})
    program = WITHOUT_TENSORFLOW.replace("HELD_OUT", "dict(validation_examples=2)")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    source, explicit, bucket = done.stdout.splitlines()
    assert "config.data.source is 'gs://bucket/images'" in bucket and "imta_jax[tfds]" in bucket
    assert "tf_data" in explicit and "imta_jax[tfds]" in explicit
    assert "'cifar10'" in source and "TensorFlow Datasets" in source
    assert "fashion_mnist_small, a path ending in .npz" in source
