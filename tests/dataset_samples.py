"""Synthetic folders in the format of `launch.py --mode=data`."""

import json

import numpy as np
from run_samples import CLOTHES


def write_data(folder, *, names=CLOTHES, shape=(32, 32, 1), counts=None, shown=(48, 20), skipped=0):
    """Writes a folder `data/`; `counts` has the training images per class."""
    rng, classes, channels = np.random.default_rng(0), len(names), shape[-1]
    folder.mkdir(parents=True)
    arrays = {}
    for split, count in zip(("train", "validation"), shown, strict=True):
        images = rng.integers(256, size=(count, *shape), dtype=np.uint8)
        labels = rng.integers(classes, size=count)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(folder / "preview.npz", **arrays)
    train = [850] * classes if counts is None else counts
    per_class = {"train": train, "validation": [150] * classes, "test": [200] * classes}
    summary = {
        "dataset": "clothes",
        "source": "/data/clothes.npz",
        "class_names": list(names),
        "image_shape": list(shape),
        "preprocessing": "Cropped at random, and every second image mirrored.",
        "splits": {
            split: {"examples": sum(counts), "per_class": counts, "skipped": skipped}
            for split, counts in per_class.items()
        },
        "statistics": {"mean": [0.25] * channels, "std": [0.5] * channels, "source": "computed"},
        "pipeline": {
            "name": "tf_data",
            "batch_size": 64,
            "images": 6400,
            "seconds": 2.0,
            "images_per_second": 3200.0,
        },
        "environment": {"device": "NVIDIA H200", "devices": 8, "cores": 16},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def changed(folder, change):
    """Applies an in-place change to `summary.json`."""
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
