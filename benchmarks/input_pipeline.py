"""Measures the input pipelines, as ratios of contenders that take turns in one run.

- Image files (ImageNet's training pipeline): CPU time per image of our pipeline, of Pillow with the
  same work, and of parts of the work. Measured on one core and on all cores: hyper-threads share a
  core, and Pillow uses one thread.
- Small images (CIFAR): time per training step with batches from the device and from NumPy,
  relative to a constant batch. The device's batch selection is also timed alone, because
  the difference of two long steps is mostly noise.
- Memory: the peak of a process that only makes ImageNet's batches (Linux only).

    python benchmarks/input_pipeline.py --out=benchmarks/results/input_pipeline.json \
        --images=ROOT --images-name="ImageNet JPEGs" --cifar=cifar10.npz --cifar-name=CIFAR-10

Files are read repeatedly and so come from the page cache: disk and network time are excluded.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np
import PIL
from PIL import Image

from benchmarks import image_files, measurement, result_file
from benchmarks.measurement import Measurements, clocks, memory_gb, spread, take_turns
from configs import cifar10
from imta_jax.config import RunConfig
from imta_jax.data import HostPipeline, load_dataset, train_batches
from imta_jax.data.pipeline.on_device import (
    OnDeviceIndices,
    OnDeviceSplit,
    copy_to_devices,
    on_device_batch,
)
from imta_jax.data.sources.tfds import import_tfds
from imta_jax.data.tensorflow_import import import_tensorflow
from imta_jax.distributed import data_mesh, place_batch, place_indices
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.huge_pages import restart_with_huge_pages
from imta_jax.training.feed import Feed, host_feed, steps_per_dispatch, training_feed
from imta_jax.training.optimizer import sgd
from imta_jax.training.setup import assemble_phase, new_phase_one, phase_parts
from imta_jax.training.state import TrainState
from imta_jax.training.step import jit_batch_step
from imta_jax.types import Batch

FULL = {"images": 9600, "batch_size": 64, "rounds": 6, "step_rounds": 60, "block": 3}
FULL |= {"memory_batch_size": 256, "memory_batches": 32}
QUICK = FULL | {"images": 320, "rounds": 3, "step_rounds": 8, "memory_batches": 20}
TARGETS = {
    "imagenet_vs_pillow": "at least 2",
    "imagenet_vs_bare_decode": "at least 0.9",
    "device_resident_overhead": "below 0.03",
    "cutting_to_constant": "below 0.03",
    "numpy_vs_device": "at most 1.10",
    "memory_peak_gb": "at most 4",
}


def training_feeds(config: RunConfig) -> tuple[dict[str, Feed], TrainState]:
    """The feeds to compare, all with one train step, and the train state that they share."""
    mesh, dataset = data_mesh(), load_dataset(config.data)
    # A low learning rate keeps the loss finite over many steps on noise.
    optimizer = sgd(lambda step: 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    classifier, pixels = new_phase_one(config, dataset), {"mean": dataset.mean, "std": dataset.std}
    phase = assemble_phase(
        "phase_one",
        config,
        *phase_parts("phase_one", config, classifier),
        optimizer,
        **pixels,
        mesh=mesh,
    )
    state = phase.new_state()

    def feed_of(**changes: Any) -> Feed:
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
        return training_feed(changed, "phase_one", dataset, phase, state)

    compiled = jit_batch_step(phase.step, mesh, state)  # one program for all feeds from the host
    from_host = feed_of(pipeline="numpy").items
    batch = place_batch(next(iter(from_host(0, 0))), mesh)
    constant = Feed("constant", lambda epoch, step: itertools.repeat(batch), lambda b: 1, compiled)
    feeds = {"constant": constant, "device": feed_of(pipeline="device")}
    feeds["cutting"] = cutting_feed(feeds["device"], copy_to_devices(dataset.splits["train"], mesh))
    feeds["numpy"] = host_feed("numpy", from_host, compiled, mesh)
    if steps_per_dispatch(config, mesh) > 1:  # on accelerators "device" does several per dispatch
        feeds["device_single_steps"] = feed_of(pipeline="device", steps_per_dispatch=1)
    return feeds, state


def cutting_feed(device: Feed, images: OnDeviceSplit) -> Feed:
    """Everything the on-device feed does except the step: batch selection on host and device."""

    @jax.jit
    def cut(images: OnDeviceSplit, indices: OnDeviceIndices) -> Batch:
        return jax.lax.map(lambda step_indices: on_device_batch(images, *step_indices), indices[:3])

    def advance(state: TrainState, indices: OnDeviceIndices) -> tuple[TrainState, Batch]:
        return state, jax.block_until_ready(cut(images, place_indices(indices, data_mesh())))

    return Feed("cutting", device.items, device.steps_of, advance)


def time_steps(config: RunConfig, rounds: int, block: int) -> Measurements:
    """Wall-clock and CPU seconds per training step, [rounds, 2], by feed.

    Feeds take turns in blocks of steps. A feed continues where its last block ended, with full
    prefetch buffers: taking a batch starts the next one, so its host time counts in that block.
    """
    feeds, state = training_feeds(config)
    block = max(block, steps_per_dispatch(config, data_mesh()))

    def blocks(feed: Feed) -> Iterator[np.ndarray]:
        nonlocal state
        items = itertools.chain.from_iterable(feed.items(e, 0) for e in itertools.count())
        while True:
            start, steps = clocks(), 0
            while steps < block:
                item = next(items)
                state, _ = feed.advance(state, item)
                steps += feed.steps_of(item)
            jax.block_until_ready(state)
            yield (clocks() - start) / steps

    running = {name: blocks(feed) for name, feed in feeds.items()}
    return take_turns({n: lambda r, timed=b: next(timed) for n, b in running.items()}, rounds)


def peak_memory(root: str, batch_size: int) -> dict[str, Any]:
    """Memory in GB while this process makes an epoch of batches; call it in its own process."""
    import_tensorflow()
    import_tfds(root)
    after_imports = memory_gb("VmRSS")
    dataset, host = image_files.load_image_folder(root), HostPipeline()
    after_indexing, train = memory_gb("VmHWM"), dataset.splits["train"]
    draw = {"batch_size": batch_size, "seed": image_files.SEED, "epoch": 0, "host": host}
    for step, _ in enumerate(train_batches(train, dataset.preprocessing, **draw)):
        if step % 8 == 0:  # let prefetching fill its buffers, as during a slow step
            _wait_while_growing()
    peak = memory_gb("VmHWM")
    return {
        "part": "memory",
        "batch_size": batch_size,
        "batches": step + 1,
        "after_imports_gb": after_imports,
        "peak_of_indexing_gb": after_indexing,
        "peak_gb": peak,
        "above_imports_gb": round(peak - after_imports, 3),
        "limit_gb": host.memory_limit_gb,
    }


def _wait_while_growing() -> None:
    before = 0.0
    while (now := memory_gb("VmRSS")) > before + 0.001:
        before = now
        time.sleep(1)


def step_rows(steps: Measurements) -> list[dict[str, Any]]:
    """One row per feed: time per step and ratio to the constant batch."""
    rows = []
    for name, seconds in steps.items():
        clock, cpu = (spread(1e3 * times) for times in seconds.T)
        row = {"part": "cifar", "feed": name, "ms_per_step": clock, "cpu_ms_per_step": cpu}
        rows.append(row | {"to_constant": spread((seconds / steps["constant"])[:, 0])})
    return rows


def step_ratios(steps: Measurements) -> Measurements:
    """Overhead of each feed per step."""
    clock, cpu = ({name: seconds[:, i] for name, seconds in steps.items()} for i in (0, 1))
    return {
        "device_resident_overhead": clock["device"] / clock["constant"] - 1,
        "device_resident_overhead_cpu": cpu["device"] / cpu["constant"] - 1,
        "cutting_to_constant": clock["cutting"] / clock["constant"],
        "numpy_vs_device": clock["numpy"] / clock["device"],
    }


def measure(
    files: Sequence[Path], config: RunConfig, folder: Path, size: Mapping[str, int]
) -> dict[str, Any]:
    """Rows and summary of all three parts; `folder` gets links to the files."""
    root = image_files.link_tree(
        files, folder / "memory", size["memory_batches"] * size["memory_batch_size"]
    )
    memory = measurement.in_own_process(peak_memory, str(root), size["memory_batch_size"])
    root = image_files.link_tree(files, folder / "timed", size["images"])
    rows, ratios = [], {}
    for cores in sorted({1, usable_cores()}):
        asked = (str(root), size["batch_size"], size["rounds"], cores)
        seconds = measurement.in_own_process(image_files.time_image_pipelines, *asked)
        rows += image_files.image_rows(seconds, cores)
        ratios |= image_files.image_ratios(seconds, "_all_cores" if cores > 1 else "")
    steps = time_steps(config, size["step_rounds"], size["block"])
    summary = measurement.medians(ratios | step_ratios(steps))
    summary["memory_peak_gb"] = memory["peak_gb"]
    difference = image_files.pillow_difference(
        image_files.load_image_folder(root), size["batch_size"]
    )
    summary["pillow_mean_difference"] = difference
    rows += [*step_rows(steps), memory]
    return {"targets": TARGETS, "rows": rows, "summary": summary}


def random_cifar(path: Path) -> Path:
    """Writes an .npz of noise with CIFAR-10's shapes; step time does not depend on the pixels."""
    draw, arrays = np.random.default_rng(image_files.SEED), {}
    for split, count in {"train": 50_000, "test": 10_000}.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(path, **arrays)
    return path


def _size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The result without hardware and versions; temporary files go to `folder`."""
    config, images = cifar10.get_config(), arguments.images
    config.model.preset = "quickstart" if arguments.quick else "cifar_5_exits"
    config.data.source = arguments.cifar or str(random_cifar(folder / "noise.npz"))
    files = image_files.find_jpegs(Path(images)) if images else image_files.make_jpegs(folder)
    name = arguments.images_name if images else "enlarged, smooth Fashion-MNIST images as JPEGs"
    width, height = np.median([_size_of(file) for file in files], axis=0)
    data = {
        "imagenet": f"{len(files)} {name}, median {height:.0f} x {width:.0f} pixels",
        "cifar": arguments.cifar_name if arguments.cifar else "noise of CIFAR-10's shape",
    }
    result = measure(
        files, RunConfig.from_mapping(config), folder, QUICK if arguments.quick else FULL
    )
    return {"seeds": [image_files.SEED], "data": data, "network": config.model.preset} | result


def main() -> None:
    """Measures, prints the tables and writes the result."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument("--images", help="folder ROOT/SPLIT/CLASS/*.jpg; default: generated JPEGs")
    parser.add_argument("--images-name", default="JPEGs", help="name of the images in the result")
    parser.add_argument("--cifar", help=".npz with train_images, train_labels, ...; default: noise")
    parser.add_argument("--cifar-name", default="an .npz", help="name of the .npz in the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, Path(folder))
    modules = (jax, flax, import_tensorflow(), PIL, np)
    result_file.write_result(arguments.out, modules, result)


if __name__ == "__main__":
    restart_with_huge_pages()  # as launch.py does
    main()
