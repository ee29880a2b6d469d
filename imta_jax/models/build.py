"""From a config's `model` and `heads` parts to classifiers. A new backbone is one entry here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from flax import nnx

from imta_jax.errors import InputError, unknown_name
from imta_jax.models.baselines.densenet import DenseNetSpec, densenet
from imta_jax.models.baselines.googlenet import GoogLeNetSpec, googlenet
from imta_jax.models.baselines.hydranet import HydraNet, HydraNetSpec
from imta_jax.models.baselines.resnet import ResNetSpec, resnet
from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.fields import read_fields
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.plan import plan_network, spec_from_config
from imta_jax.models.presets import NETWORK_PRESETS
from imta_jax.nn.initialization import Initialization, get_initialization
from imta_jax.techniques import TRANSFERS, IndependentHeads, ResidualHeads, TransferHeads

# What phase-II linear layers start from: phase I's ("fine-tune", Sec. 4) or new draws (reference).
HEAD_STARTS = ("phase_one", "fresh")


class _Kind(NamedTuple):
    """How a backbone is made.

    Attributes:
      read: the fields of `config.model` -> what describes the network; refuses what does not fit.
      make: (that, the images' channels, rngs=) -> the network; refuses nothing.
    """

    read: Callable[[Mapping[str, Any]], Any]
    make: Callable[..., Backbone]


def _of_fields(name: str, kind: type, make: Callable[..., Backbone]) -> _Kind:
    """A backbone that a dataclass of its fields describes."""
    return _Kind(lambda fields: read_fields(kind, fields, name), make)


BACKBONES: Mapping[str, _Kind] = {
    "msdnet": _Kind(lambda fields: plan_network(spec_from_config(fields)), MSDNet),
    "resnet": _of_fields("resnet", ResNetSpec, resnet),
    "densenet": _of_fields("densenet", DenseNetSpec, densenet),
    "googlenet": _of_fields("googlenet", GoogLeNetSpec, googlenet),
    "hydranet": _of_fields("hydranet", HydraNetSpec, HydraNet),
}


def resolve_model_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a `model` config on top of its preset; fields that are None count as not given.

    Args:
      model_config: `backbone`, the fields that it has (`plan.NetworkSpec` for an MSDNet), and
        `preset` (a name in `presets.NETWORK_PRESETS`, optional).

    Returns:
      All fields, `preset` left out.

    Raises:
      ValueError: an unknown preset.
    """
    given = {name: value for name, value in dict(model_config).items() if value is not None}
    preset = given.pop("preset", "")
    if not preset:
        return given
    if preset not in NETWORK_PRESETS:
        raise unknown_name("config.model.preset", preset, NETWORK_PRESETS)
    return {**NETWORK_PRESETS[preset], **given}


def build_classifier(
    model_config: Mapping[str, Any],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
) -> MultiExitClassifier:
    """Builds a phase-I classifier: a backbone and one independent linear layer per exit.

    Args:
      model_config: a config's `model` part; see `resolve_model_config`.
      num_classes: K.
      image_shape: (H, W, C) of the images it will see.
      rngs: the `params` stream is used.

    Raises:
      ValueError: unknown names, missing fields or values out of range, by name.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape must be (H, W, C), all above 0; found {image_shape}")
    if num_classes < 2:
        raise InputError(
            f"num_classes must be at least 2; found {num_classes}: one class leaves nothing"
            " to tell apart (look at the class folders, or the labels, of config.data.source)"
        )
    kind, fields, init = _read(model_config)
    backbone = kind.make(kind.read(fields), image_shape[2], rngs=rngs)
    heads = IndependentHeads(backbone.feature_widths, num_classes, init=init, rngs=rngs)
    return MultiExitClassifier(backbone, heads, num_classes=num_classes, image_shape=image_shape)


def check_model(model_config: Mapping[str, Any]) -> None:
    """Refuses what `build_classifier` would refuse of a config's `model` part; builds nothing."""
    kind, fields, _ = _read(model_config)
    kind.read(fields)


def _read(model_config: Mapping[str, Any]) -> tuple[_Kind, dict[str, Any], Initialization]:
    fields = resolve_model_config(model_config)
    name = fields.pop("backbone", "msdnet")
    if name not in BACKBONES:
        raise unknown_name("config.model.backbone", name, BACKBONES)
    return BACKBONES[name], fields, get_initialization(fields.get("initialization", "he_normal"))


def with_collaborative_heads(
    classifier: MultiExitClassifier,
    heads_config: Mapping[str, Any],
    *,
    num_classes: int,
    rngs: nnx.Rngs,
) -> MultiExitClassifier:
    """Builds the phase-II classifier on the same backbone (shared, not copied).

    Args:
      classifier: a phase-I classifier; its heads stay beside the new ones.
      heads_config: `transfer`, one of `techniques.TRANSFERS`; `stop_gradient` along the path
        (default True, the paper); `start`, one of `HEAD_STARTS` (default "phase_one");
        `initialization` of what is new (default "he_normal").
      num_classes: K, that of the phase-I classifier.
      rngs: the `params` stream is used.

    Raises:
      ValueError: unknown names, another number of classes, a classifier that is phase II already.
    """
    check_heads(heads_config)
    if classifier.phase_one_heads is not None:
        raise InputError("this classifier has collaborative heads already; pass the phase-I one")
    if num_classes != classifier.num_classes:
        raise InputError(
            f"phase II keeps phase I's classes: expected {classifier.num_classes}, "
            f"found num_classes={num_classes}"
        )
    heads = _phase_two_heads(classifier, heads_config, rngs)
    if heads_config.get("start", "phase_one") == "phase_one":
        heads.start_from(cast(IndependentHeads, classifier.heads))
    return MultiExitClassifier(
        classifier.backbone,
        heads,
        num_classes=num_classes,
        image_shape=classifier.image_shape,
        phase_one_heads=classifier.heads,
    )


def check_heads(heads_config: Mapping[str, Any]) -> None:
    """Refuses what `with_collaborative_heads` would refuse of the heads' config; builds nothing."""
    known = ("transfer", "stop_gradient", "start", "initialization")
    for name in heads_config:
        if name not in known:
            raise unknown_name("field of the heads' config", name, known)
    transfer = heads_config.get("transfer", "identity")
    start = heads_config.get("start", "phase_one")
    if transfer not in TRANSFERS:
        raise unknown_name("transfer", transfer, TRANSFERS)
    if start not in HEAD_STARTS:
        raise unknown_name("start of the phase-II heads", start, HEAD_STARTS)
    get_initialization(heads_config.get("initialization", "he_normal"))


def _phase_two_heads(
    classifier: MultiExitClassifier, fields: Mapping[str, Any], rngs: nnx.Rngs
) -> IndependentHeads | TransferHeads:
    transfer = fields.get("transfer", "identity")
    common = {"init": get_initialization(fields.get("initialization", "he_normal")), "rngs": rngs}
    sizes = (classifier.backbone.feature_widths, classifier.num_classes)
    if transfer == "none":
        return IndependentHeads(*sizes, **common)
    kind = ResidualHeads if transfer == "identity" else TransferHeads
    return kind(*sizes, stop_gradient=bool(fields.get("stop_gradient", True)), **common)
