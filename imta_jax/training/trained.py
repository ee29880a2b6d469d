"""A trained classifier from its checkpoint alone: no config and no dataset are needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from imta_jax.models import MultiExitClassifier, build_classifier, with_collaborative_heads
from imta_jax.training.checkpoints import read_meta, restore_model


def last_phase(config: Mapping[str, Any]) -> str:
    """The phase whose network a run is judged by: "phase_two", unless that is left out."""
    return "phase_two" if config["phase_two"]["total_epochs"] > 0 else "phase_one"


def load_classifier(
    folder: str | Path, which: str = "last"
) -> tuple[MultiExitClassifier, dict[str, Any]]:
    """Rebuilds the network that a phase trained and fills it, in inference mode.

    Args:
      folder: a phase's folder in a run, e.g. "runs/quickstart/phase_two".
      which: "last", or "best" by validation.

    Returns:
      The classifier, and what its checkpoint says of itself: `phase`, `epoch`, `validation_top1`,
      `model`, `heads`, `dataset`, `image_shape`, `class_names`, `mean` and `std` of the pixels.

    Raises:
      FileNotFoundError: no checkpoint there.
    """
    folder = Path(folder)
    meta = read_meta(folder, which)
    classifier = empty_classifier(meta)
    restore_model(classifier, folder, which)
    classifier.eval()
    return classifier, meta


def empty_classifier(meta: Mapping[str, Any]) -> MultiExitClassifier:
    """The network that a checkpoint's `meta` describes, with starting values."""
    classes = len(meta["class_names"])
    classifier = build_classifier(
        meta["model"],
        num_classes=classes,
        image_shape=tuple(meta["image_shape"]),
        rngs=nnx.Rngs(0),
    )
    if meta["phase"] == "phase_two":
        classifier = with_collaborative_heads(
            classifier, meta["heads"], num_classes=classes, rngs=nnx.Rngs(0)
        )
    return classifier
