"""Image folders for the tests of `imta_jax.data.sources`, and what is read from them."""

import os

from sample_images import config, make_image, write

from imta_jax.data import load_dataset
from imta_jax.data.sources import SourceRequest, load_source

RANDOM_AREA_CROP = {"preprocessing": "random_area_crop", "image_size": 24, "resize": 28}
NAMES = ("cat", "dog", "owl")


def folder(root, splits=("train", "test"), names=NAMES, each=4, extension="jpg", size=(40, 48)):
    """Writes `each` different images per class in each split."""
    many = [(split, name, i) for split in splits for name in names for i in range(each)]
    files = {
        f"{s}/{n}/{i}.{extension}": make_image(*size, seed) for seed, (s, n, i) in enumerate(many)
    }
    return write(root / "pets", files)


def load(root, **changes):
    return load_dataset(config(root, **{**RANDOM_AREA_CROP, **changes}))


def read(root, **changes):
    """The splits of the source, without held-out images and statistics, which is faster."""
    fields = config(root, **{**RANDOM_AREA_CROP, **changes})
    return load_source(SourceRequest.from_config(fields, encoded=True))


def paths(split):
    return [os.fsdecode(split.images.path(i)) for i in range(len(split.labels))]


def contents(data):
    """Path, label, size and format of every image, for comparisons."""
    return {
        name: (paths(s), s.labels.tolist(), s.images.sizes.tolist(), s.images.is_jpeg.tolist())
        for name, s in data.splits.items()
    }


def check_labels(split, class_names):
    assert [path.split("/")[-2] for path in paths(split)] == [class_names[k] for k in split.labels]


def write_broken_images(root):
    """Writes images that do not decode, three in each of two classes."""
    whole = (root / "train/cat/0.jpg").read_bytes()
    png = write(root, {"train/cat/a.png": make_image(40, 48)}) / "train/cat/a.png"
    contents = {
        "train/cat/cut short.jpg": whole[: len(whole) // 2],
        "train/cat/empty.jpg": b"",
        "train/cat/cut short.png": png.read_bytes()[:-200],
        "train/dog/text.jpg": b"not an image",
        "train/dog/header only.jpeg": whole[:20],
    }
    write(root, contents)
    os.symlink(root / "nowhere", root / "train/dog/link to nowhere.jpg")
    return {*contents, "train/dog/link to nowhere.jpg"}
