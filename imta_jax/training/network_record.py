"""The record of the network in a checkpoint, by which another process rebuilds and checks it.

Names and options are in `model` and `heads` of the `meta`. The record adds what they do not
determine: the classes of backbone and heads, the modules that registered their names, and a
fingerprint of the parameters. Classes of this package are recorded as "imta_jax", because a file
of this package may move.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flax import nnx

from imta_jax.config import HeadsConfig, ModelConfig
from imta_jax.errors import InputError
from imta_jax.models import BACKBONES, MultiExitClassifier
from imta_jax.runtime.registry import HEADS, dotted_path_of
from imta_jax.training.state import named_arrays

PACKAGE = "imta_jax"
FIX = (
    "use the code that the network was trained with (PYTHONPATH decides which is imported), or "
    "train again"
)


def network_record(
    classifier: MultiExitClassifier, variables: nnx.State, model: ModelConfig, heads: HeadsConfig
) -> dict[str, Any]:
    """The record of a classifier.

    Args:
      classifier: classifier of either phase.
      variables: `nnx.state` of the classifier.
      model: `config.model`.
      heads: the phase-II heads.
    """
    sources = {
        "backbone": BACKBONES.source(model.backbone) if model.backbone else None,
        "heads": HEADS.source(model.heads),
    }
    if classifier.phase_one_heads is not None:
        sources["transfer"] = HEADS.source(heads.transfer)
    return {
        "backbone_class": _class_of(classifier.backbone),
        "heads_class": _class_of(classifier.heads),
        "parameters": parameter_fingerprint(variables),
        "registered_by": {part: source for part, source in sources.items() if source},
    }


def parameter_fingerprint(variables: nnx.State) -> str:
    """A digest of paths, shapes and dtypes of the parameters and batch statistics in a state."""
    arrays = named_arrays(nnx.filter_state(variables, nnx.Any(nnx.Param, nnx.BatchStat)))
    tree = sorted([name, list(x.shape), str(x.dtype)] for name, x in arrays.items())
    return hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:16]


def import_registered(meta: Mapping[str, Any]) -> None:
    """Imports the modules that registered the names in a checkpoint's `meta`.

    Raises:
      InputError: a module does not register its name any more.
      MissingPackageError: a module cannot be imported.
    """
    names = {**meta["model"], "transfer": meta["heads"]["transfer"]}
    for part, source in meta.get("network", {}).get("registered_by", {}).items():
        registry = BACKBONES if part == "backbone" else HEADS
        section = "phase_two" if part == "transfer" else "model"
        registry.restore_source(names[part], source, f"config.{section}.{part}")


def check_classes(classifier: MultiExitClassifier, meta: Mapping[str, Any], folder: str) -> None:
    """Checks that backbone and heads of a rebuilt network are of the recorded classes.

    Args:
      classifier: rebuilt from the `meta`.
      meta: `meta` of a checkpoint; those of earlier versions have no record and are not checked.
      folder: the checkpoint's folder, for the message.

    Raises:
      InputError: names what differs.
    """
    _check(meta, folder, backbone_class=_class_of(classifier.backbone))
    _check(meta, folder, heads_class=_class_of(classifier.heads))


def check_parameters(classifier: MultiExitClassifier, meta: Mapping[str, Any], folder: str) -> None:
    """Checks that the parameters of a rebuilt network are the recorded ones, types included.

    Arguments and errors are those of `check_classes`.
    """
    _check(meta, folder, parameters=parameter_fingerprint(nnx.state(classifier)))


def _check(meta: Mapping[str, Any], folder: str, **rebuilt: str) -> None:
    record = meta.get("network")
    for part, value in rebuilt.items():
        if record is not None and value != record[part]:
            raise InputError(
                f"{folder}: the rebuilt network is another one: {part} is {value}, the "
                f"checkpoint's {record[part]}; {FIX}"
            )


def _class_of(module: Any) -> str:
    """The dotted path of a module's class; "imta_jax" for classes of this package."""
    path = dotted_path_of(type(module))
    return PACKAGE if path.startswith(f"{PACKAGE}.") else path
