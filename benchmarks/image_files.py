"""Contenders of `input_pipeline.py` on image files: ImageNet's training pipeline, and Pillow.

All produce the same crops of the same files, or do only a part of that work.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measurement import Measurements, clocks, spread, take_turns
from configs import imagenet, quickstart
from imta_jax.data import Dataset, epoch_plan, load_dataset, train_batches
from imta_jax.data.pipeline.batch_indices import BatchIndices, train_indices
from imta_jax.data.pipeline.tf_decoding import without_autograph
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.runtime.environment import usable_cores

SEED, CLASSES = 0, 4
Batches = Iterator[np.ndarray]


def find_jpegs(root: Path) -> list[Path]:
    """All JPEGs in ROOT/SPLIT/CLASS, of all splits."""
    paths = sorted(p for p in root.glob("*/*/*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if len(paths) < CLASSES:
        raise FileNotFoundError(
            f"{root}: found {len(paths)} JPEGs in SPLIT/CLASS; at least {CLASSES} are needed"
        )
    return paths


def make_jpegs(folder: Path, count: int = 160) -> list[Path]:
    """Writes JPEGs of ImageNet's typical size, enlarged from the images in the package."""
    small = load_dataset(quickstart.get_config().data).splits["train"].images[:count, ..., 0]
    files = [folder / f"{i}.jpg" for i in range(len(small))]
    for pixels, file in zip(small, files, strict=True):
        image = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
        image.convert("RGB").save(file, quality=90)
    return files


def link_tree(files: Sequence[Path], root: Path, images: int) -> Path:
    """Makes ROOT/SPLIT/CLASS of links: `images` training images, one per class for evaluation."""
    for split, count in {"train": images, "validation": CLASSES, "test": CLASSES}.items():
        for i, file in zip(range(count), itertools.cycle(files), strict=False):
            folder = root / split / f"class_{i % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.jpg").symlink_to(file.resolve())
    return root


def load_image_folder(root: Path | str, image_size: int = 224) -> Dataset:
    """Loads an image folder with ImageNet's config; its index is not cached."""
    config = imagenet.get_config().data
    config.update(source=str(root), validation_split="auto", test_split="auto", index_dir="")
    config.image_size = image_size
    return load_dataset(config)


def drawn_indices(dataset: Dataset, batch_size: int, epoch: int) -> tuple[np.ndarray, BatchIndices]:
    """Path and crop of each image of an epoch, the same for every contender."""
    train = dataset.splits["train"]
    plan = epoch_plan(dataset.preprocessing, train.sizes, seed=SEED, epoch=epoch)
    steps = len(train) // batch_size
    indices = train_indices(plan, batch_size=batch_size, start_step=0, steps=steps)
    return train.images.files[train.images.file_id[indices.index]], indices


def our_batches(dataset: Dataset, batch_size: int, epoch: int) -> Batches:
    """The training batches of this package."""
    train, draw = dataset.splits["train"], {"batch_size": batch_size, "seed": SEED, "epoch": epoch}
    return (b.images for b in train_batches(train, dataset.preprocessing, **draw))


def pillow_batches(dataset: Dataset, batch_size: int, epoch: int) -> Batches:
    """The same crops by Pillow, as in torchvision's RandomResizedCrop, in one thread."""
    paths, indices = drawn_indices(dataset, batch_size, epoch)
    size, made = (dataset.preprocessing.size,) * 2, []
    for path, (top, left, height, width), flip in zip(
        paths, indices.window, indices.flip, strict=True
    ):
        with Image.open(os.fsdecode(path)) as file:
            window = file.convert("RGB").crop((left, top, left + width, top + height))
        image = window.resize(size, Image.Resampling.BILINEAR)
        made.append(np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image))
        if len(made) == batch_size:
            yield np.stack(made)
            made = []


def _shapes(decode: Callable[..., Any], dataset: Dataset, batch_size: int, epoch: int) -> Batches:
    """Reads and decodes the same files; yields the shapes of the decoded images."""
    tf, (paths, indices) = import_tensorflow(), drawn_indices(dataset, batch_size, epoch)
    windows = tf.data.Dataset.from_tensor_slices((paths, indices.window.astype(np.int32)))
    shapes = windows.map(
        without_autograph(lambda path, window: tf.shape(decode(tf, tf.io.read_file(path), window))),
        num_parallel_calls=usable_cores(),
    )
    options = tf.data.Options()
    # As in our pipeline: autotuning left a single core idle for a third of the time.
    options.autotune.enabled = False
    return shapes.batch(batch_size).prefetch(2).with_options(options).as_numpy_iterator()


def _window(tf: Any, file: Any, window: Any) -> Any:
    return tf.io.decode_and_crop_jpeg(file, window, channels=3, dct_method="INTEGER_ACCURATE")


def _eighth(tf: Any, file: Any, window: Any) -> Any:
    return tf.io.decode_jpeg(file, channels=1, ratio=8)


CONTENDERS = {
    "ours": our_batches,
    "pillow": pillow_batches,
    "bare_decode": functools.partial(_shapes, _window),
    # Entropy decoding of entire files with little other work.
    "entropy_decode": functools.partial(_shapes, _eighth),
}


def time_image_pipelines(root: str, batch_size: int, rounds: int, cores: int) -> Measurements:
    """Wall-clock and CPU seconds per image, [rounds, 2], by contender.

    Call it in a separate process: it restricts the process and its threads to `cores` cores.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    dataset = load_image_folder(root)
    images = len(dataset.splits["train"]) // batch_size * batch_size

    def timed(batches: Callable[..., Batches], epoch: int) -> np.ndarray:
        start = clocks()
        for _ in batches(dataset, batch_size, epoch):
            pass
        return (clocks() - start) / images

    return take_turns({n: functools.partial(timed, c) for n, c in CONTENDERS.items()}, rounds)


def pillow_difference(dataset: Dataset, batch_size: int) -> float:
    """Mean absolute pixel difference (0 to 255) of Pillow's and our images over an epoch."""
    pairs = zip(*(CONTENDERS[n](dataset, batch_size, 0) for n in ("ours", "pillow")), strict=True)
    return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))


def image_rows(times: Measurements, cores: int) -> list[dict[str, Any]]:
    """One row per contender: times and throughput on `cores` cores."""
    return [
        {
            "part": f"imagenet, cores: {cores}",
            "contender": name,
            "cpu_ms_per_image": spread(1e3 * seconds[:, 1]),
            "images_per_second_per_core": spread(1 / seconds[:, 1])["median"],
            "images_per_second_on_clock": spread(1 / seconds[:, 0])["median"],
        }
        for name, seconds in times.items()
    ]


def image_ratios(times: Measurements, suffix: str) -> Measurements:
    """Throughput of our pipeline over that of the others, in CPU time."""
    cpu = {name: seconds[:, 1] for name, seconds in times.items()}
    references = {"pillow": cpu["pillow"], "bare_decode": cpu["bare_decode"]}
    return {
        f"imagenet_vs_{name}{suffix}": seconds / cpu["ours"] for name, seconds in references.items()
    }
