"""From a config's `model` and `heads` parts to classifiers. A new backbone is one entry here."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from imta_jax.errors import unknown_name
from imta_jax.layers import initialization
from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.densenet import DenseNetSpec, densenet
from imta_jax.models.fields import read_fields
from imta_jax.models.googlenet import GoogLeNetSpec, googlenet
from imta_jax.models.hydranet import HydraNet, HydraNetSpec
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.plan import plan_network, spec_from_config
from imta_jax.models.presets import NETWORK_PRESETS
from imta_jax.models.resnet import ResNetSpec, resnet
from imta_jax.techniques import TRANSFERS, IndependentHeads, ResidualHeads, TransferHeads

# What phase-II linear layers start from: phase I's ("fine-tune", Sec. 4) or new draws (reference).
HEAD_STARTS = ("phase_one", "fresh")

Builder = Callable[[Mapping[str, Any], tuple[int, int, int], nnx.Rngs], Backbone]


def _build_msdnet(
    fields: Mapping[str, Any], image_shape: tuple[int, int, int], rngs: nnx.Rngs
) -> Backbone:
    return MSDNet(plan_network(spec_from_config(fields)), image_shape[2], rngs=rngs)


def _with_fields(name: str, kind: type, make: Callable[..., Backbone]) -> Builder:
    """A builder of a backbone made of a dataclass of fields and the images' channels."""

    def build(
        fields: Mapping[str, Any], image_shape: tuple[int, int, int], rngs: nnx.Rngs
    ) -> Backbone:
        return make(read_fields(kind, fields, name), image_shape[2], rngs=rngs)

    return build


BACKBONES: Mapping[str, Builder] = {
    "msdnet": _build_msdnet,
    "resnet": _with_fields("resnet", ResNetSpec, resnet),
    "densenet": _with_fields("densenet", DenseNetSpec, densenet),
    "googlenet": _with_fields("googlenet", GoogLeNetSpec, googlenet),
    "hydranet": _with_fields("hydranet", HydraNetSpec, HydraNet),
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
        raise ValueError(f"image_shape must be (H, W, C), all above 0; found {image_shape}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; found {num_classes}")
    fields = resolve_model_config(model_config)
    name = fields.pop("backbone", "msdnet")
    if name not in BACKBONES:
        raise unknown_name("config.model.backbone", name, BACKBONES)
    backbone = BACKBONES[name](fields, tuple(image_shape), rngs)
    init = initialization(fields.get("initialization", "he_normal"))
    heads = IndependentHeads(backbone.feature_widths, num_classes, init=init, rngs=rngs)
    return MultiExitClassifier(backbone, heads, num_classes=num_classes, image_shape=image_shape)


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
    fields = dict(heads_config)
    known = ("transfer", "stop_gradient", "start", "initialization")
    for name in fields:
        if name not in known:
            raise unknown_name("field of the heads' config", name, known)
    if classifier.phase_one_heads is not None:
        raise ValueError("this classifier has collaborative heads already; pass the phase-I one")
    if num_classes != classifier.num_classes:
        raise ValueError(
            f"phase II keeps phase I's classes: expected {classifier.num_classes}, "
            f"found num_classes={num_classes}"
        )
    heads = _phase_two_heads(classifier, fields, rngs)
    start = fields.get("start", "phase_one")
    if start not in HEAD_STARTS:
        raise unknown_name("start of the phase-II heads", start, HEAD_STARTS)
    if start == "phase_one":
        heads.start_from(classifier.heads)
    return MultiExitClassifier(
        classifier.backbone,
        heads,
        num_classes=num_classes,
        image_shape=classifier.image_shape,
        phase_one_heads=classifier.heads,
    )


def _phase_two_heads(
    classifier: MultiExitClassifier, fields: Mapping[str, Any], rngs: nnx.Rngs
) -> IndependentHeads | TransferHeads:
    transfer = fields.get("transfer", "identity")
    if transfer not in TRANSFERS:
        raise unknown_name("transfer", transfer, TRANSFERS)
    common = {"init": initialization(fields.get("initialization", "he_normal")), "rngs": rngs}
    sizes = (classifier.backbone.feature_widths, classifier.num_classes)
    if transfer == "none":
        return IndependentHeads(*sizes, **common)
    kind = ResidualHeads if transfer == "identity" else TransferHeads
    return kind(*sizes, stop_gradient=bool(fields.get("stop_gradient", True)), **common)
