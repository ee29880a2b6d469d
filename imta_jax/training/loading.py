"""A trained classifier from its checkpoint alone, without config and dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.config import RunConfig
from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.runtime.paths import local_path
from imta_jax.training.checkpoint_reading import read_meta, restore_model
from imta_jax.training.network_arrays import empty_classifier
from imta_jax.training.network_record import check_classes, check_parameters

# Entries of `meta` from which the network is made.
_REQUIRED = {
    "class_names": list,
    "heads": dict,
    "image_shape": list,
    "model": dict,
    "phase": str,
}


def last_phase(config: RunConfig) -> str:
    """The phase whose network is evaluated: "phase_two", or "phase_one" if that has no epochs."""
    return "phase_two" if config.phase_two.total_epochs else "phase_one"


def load_classifier(
    folder: str | Path, which: str = "last"
) -> tuple[MultiExitClassifier, dict[str, Any]]:
    """Rebuilds the network that a phase trained and restores it, in inference mode.

    Args:
      folder: a phase's folder in a run, for example "runs/quickstart/phase_two".
      which: "last", or "best" on validation images.

    Returns:
      The classifier, and the `meta` of its checkpoint: `phase`, `epoch`, `validation_top1`,
      `model`, `heads`, `dataset`, `image_shape`, `class_names`, `mean` and `std` of the pixels.
      Checkpoints of earlier versions lack `evaluation_transform`, the preprocessing of images.

    Raises:
      MissingFileError: there is no readable checkpoint.
      MissingPackageError: backbone or heads are of a module that cannot be imported.
      InputError: the checkpoint does not describe its network, or the code of backbone or heads
        makes another network now.
    """
    folder = local_path("folder", folder)
    meta = read_meta(folder, which)
    if missing := _missing(meta):
        raise InputError(
            f"meta/metadata of a checkpoint in {folder} has no valid {', '.join(missing)}; restore"
            " the checkpoint from a copy"
        )
    classifier = empty_classifier(meta)
    check_classes(classifier, meta, str(folder))
    restore_model(classifier, folder, which)  # names the arrays that differ
    check_parameters(classifier, meta, str(folder))
    classifier.eval()
    return classifier, meta


def _missing(meta: Mapping[str, Any]) -> list[str]:
    """Names of the entries that are missing or of another type."""
    missing = [name for name, kind in _REQUIRED.items() if not isinstance(meta.get(name), kind)]
    if "image_shape" not in missing:
        shape = meta["image_shape"]
        if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
            missing.append("image_shape")
    return sorted(missing)
