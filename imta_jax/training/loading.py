"""A trained classifier from its checkpoint alone, without config and dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from imta_jax.config import RunConfig
from imta_jax.models import MultiExitClassifier, build_classifier, with_collaborative_heads
from imta_jax.runtime.paths import local_path
from imta_jax.training.checkpoint_reading import read_meta, restore_model
from imta_jax.training.network_record import check_network, import_registered


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
      InputError: the code of backbone or heads makes another network now.
    """
    folder = local_path("folder", folder)
    meta = read_meta(folder, which)
    classifier = empty_classifier(meta)
    check_network(classifier, meta, str(folder))
    restore_model(classifier, folder, which)
    classifier.eval()
    return classifier, meta


def empty_classifier(meta: Mapping[str, Any]) -> MultiExitClassifier:
    """The untrained network that a checkpoint's `meta` describes."""
    import_registered(meta)
    num_classes = len(meta["class_names"])
    classifier = build_classifier(
        meta["model"],
        num_classes=num_classes,
        image_shape=tuple(meta["image_shape"]),
        rngs=nnx.Rngs(0),
    )
    if meta["phase"] == "phase_two":
        classifier = with_collaborative_heads(
            classifier, meta["heads"], num_classes=num_classes, rngs=nnx.Rngs(0)
        )
    return classifier
