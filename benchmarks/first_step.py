"""Time from the start of `launch.py` to the first training step, for `train_step.py`."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# Family -> image size, classes, images of the generated dataset, batch size. ImageNet has few
# images here, and few classes so that each one occurs in the validation split.
DATA = {"cifar": (32, 10, 50_000, 64), "imagenet": (224, 6, 64, 16)}
LINE = "phase_one step 1/"


def first_step_rows(networks: Sequence[str], device: str) -> list[dict[str, Any]]:
    """One row per network: seconds of a cold launch and of one with a warm compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        return [_row(network, device, Path(folder) / network) for network in networks]


def _row(network: str, device: str, folder: Path) -> dict[str, Any]:
    family = "imagenet" if network.startswith("imagenet") else "cifar"
    *_, count, batch_size = DATA[family]
    folder.mkdir()
    data = write_images(folder / "images.npz", family)
    row = {"part": "first_step", "network": network, "batch_size": batch_size, "images": count}
    for cache in ("cold", "warm"):
        command = launch_command(network, family, data, folder, cache)
        seconds = seconds_to_line(command, LINE, device)
        row[f"{cache}_s"] = float(f"{seconds:.4g}")
    return row


def write_images(path: Path, family: str) -> Path:
    """Writes noise of a family's shapes as an .npz for `config.data.source`."""
    side, classes, count, _ = DATA[family]
    generator, arrays = np.random.default_rng(0), {}
    for split, size in (("train", count), ("test", max(count // 50, 1))):
        arrays[f"{split}_images"] = generator.integers(0, 256, (size, side, side, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(size) % classes
    np.savez(path, **arrays)
    return path


def launch_command(network: str, family: str, data: Path, folder: Path, cache: str) -> list[str]:
    """The command of a run that logs every step."""
    _, _, count, batch_size = DATA[family]
    config = "imagenet" if family == "imagenet" else "cifar10"
    settings = {
        "model.preset": network,
        "data.source": data,
        "data.preprocessing": "padded_crop",
        "data.validation_split": "hold_out",
        "data.validation_examples": count // 10,
        "data.test_split": "test",
        "phase_one.batch_size": batch_size,
        "phase_two.batch_size": batch_size,
        "evaluation.batch_size": batch_size,
        "log.check_every_steps": 1,
        "log.line_every_seconds": 1e-9,
    }
    return [
        *(sys.executable, str(ROOT / "launch.py"), f"--config={ROOT}/configs/{config}.py"),
        *(f"--workdir={folder / cache}", "--mode=phase_one", f"--compilation_cache={folder}/cache"),
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def seconds_to_line(command: Sequence[str], line: str, device: str) -> float:
    """Seconds from the start of a command until it prints `line`; then the command is killed.

    Raises:
      RuntimeError: the command ended before that; the message has its last output.
    """
    environment = os.environ | {"JAX_PLATFORMS": device, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    output: list[str] = []
    start = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for written in process.stdout:
            output.append(written)
            if line in written:
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise RuntimeError(f"ended before {line!r}: {''.join(output[-20:])}")
