"""The command of `run.py`: reads image files, prints predictions and reports files it cannot use.

Files are read and rejected by `image_files.read_image`, as in this package. Exports have a copy of
this module and of the modules it imports; see `runner_files`.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imta_jax.data.pipeline.evaluation_transform import EvaluationTransform, transform_from_dict
from imta_jax.errors import InputError, UserError, message_of
from imta_jax.inference.image_files import find_image_files, read_image
from imta_jax.inference.printable_text import file_name, on_one_line, printable

_PROGRAM = "run.py"
_BATCH_SIZE = 64
_INTERRUPTED = 130
_FORMAT_VERSION = 2  # of the preprocessing, in all exports that have a runner


@runtime_checkable
class Runner(Protocol):
    """The network of an export: the class `Network` of `run.py`."""

    manifest: dict[str, Any]
    transform: EvaluationTransform

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, exits from 0 and confidences of uint8 images [N, H, W, C]."""
        ...


def transform_of(manifest: dict[str, Any]) -> EvaluationTransform:
    """The preprocessing of images that a manifest describes."""
    height, width, channels = manifest["image_shape"]
    shape = (height, width, channels)
    return transform_from_dict(manifest["preprocessing"], shape, _FORMAT_VERSION)


def thresholds_for(manifest: dict[str, Any], budget: float) -> list[float]:
    """The thresholds of the most accurate operating point that costs at most `budget`.

    Raises:
      InputError: every operating point costs more.
    """
    points = [p for p in manifest["operating_points"] if p["budget"] <= budget]
    if not points:
        least = math.ceil(1e3 * min(p["budget"] for p in manifest["operating_points"])) / 1e3
        raise InputError(
            f"budget is {budget}; every operating point costs at least {least} of the full network:"
            f" pass --budget={least} or more"
        )
    return max(points, key=lambda p: p["validation_top1"])["thresholds"]


def run_stage(name: str, stage: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a stage.

    Args:
      name: file of the stage.
      stage: a function of `arguments`.
      *arguments: what it is called with.

    Raises:
      InputError: the stage failed, for example because it is of another network.
    """
    try:
        return stage(*arguments)
    except Exception as error:  # JAX and onnxruntime raise many types
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(
            f"{name} failed ({type(error).__name__}: {reason}); copy the export again"
        ) from error


def main(make_network: Callable[[Path, float], Runner], folder: Path, description: str) -> int:
    """Prints a line per image: file, class, confidence and exit from 1, separated by tabs.

    Args:
      make_network: makes the network of a folder for a budget.
      folder: the export.
      description: what the command does, for `--help`.

    Returns:
      0; 1 if an image was skipped; 2 if an argument is invalid or the export is damaged; 130 after
      Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=description)
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--budget",
        type=float,
        default=0.5,
        help="mean cost per image as a fraction of the full network's (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        paths = find_image_files(arguments.images)
        return _classify(_load(make_network, folder, arguments.budget), paths)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, UserError, OSError) as error:
        # "No module named 'jax'", for example
        _print_message(on_one_line(f"error: {message_of(error)}".replace("\n", " ")))
        return 2
    except KeyboardInterrupt:
        _print_message("interrupted")
        return _INTERRUPTED


def _load(make_network: Callable[[Path, float], Runner], folder: Path, budget: float) -> Runner:
    try:
        return make_network(folder, budget)
    except (ImportError, UserError, OSError):
        raise
    except Exception as error:  # the readers of programs and weights raise many types for damage
        raise InputError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}); copy the export again, "
            "or install the versions of its manifest.json"
        ) from error


def _classify(network: Runner, paths: Sequence[Path]) -> int:
    channels = network.transform.image_shape[2]
    if channels not in (1, 3):
        raise InputError(
            f"the network takes images of {channels} channels; expected 1 or 3 for image files"
        )
    num_predicted = 0
    for start in range(0, len(paths), _BATCH_SIZE):
        images = list(_read(paths[start : start + _BATCH_SIZE], network.transform))
        if not images:
            continue
        predictions = network.predict(np.stack([pixels for _, pixels in images]))
        for (path, _), label, exit_, confidence in zip(images, *predictions, strict=True):
            name = on_one_line(file_name(path))
            if not math.isfinite(confidence):
                _print_message(f"skipped: {name}: the logits are not finite; the network overflows")
                continue
            if label >= len(network.manifest["class_names"]):
                raise InputError(f"class_names has no name for class {label}; export it again")
            label_name = on_one_line(network.manifest["class_names"][label])
            line = f"{name}\t{label_name}\t{confidence:.4f}\t{exit_ + 1}"
            print(printable(line, sys.stdout.encoding))
            num_predicted += 1
    sys.stdout.flush()
    if num_predicted < len(paths):
        skipped = len(paths) - num_predicted
        _print_message(f"{skipped} of {len(paths)} images were skipped")
        return 1
    return 0


def _read(
    paths: Sequence[Path], transform: EvaluationTransform
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields the network's input of each file that is accepted, and reports the others."""
    for path in paths:
        try:
            yield path, read_image(path, transform).pixels
        except InputError as error:
            _print_message(on_one_line(f"skipped: {error}"))


def _print_message(text: str) -> None:
    print(printable(f"{_PROGRAM}: {text}", sys.stderr.encoding), file=sys.stderr)
