"""Builds classifiers from `config.model` and the heads' config; lists the backbones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from flax import nnx

from imta_jax.config import HeadsConfig, ModelConfig
from imta_jax.errors import InputError, unknown_name
from imta_jax.models.baselines.densenet import DenseNetSpec, densenet
from imta_jax.models.baselines.googlenet import GoogLeNetSpec, googlenet
from imta_jax.models.baselines.hydranet import HydraNet, HydraNetSpec
from imta_jax.models.baselines.resnet import ResNetSpec, resnet
from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.plan import NetworkSpec, plan_network
from imta_jax.models.presets import NETWORK_PRESETS
from imta_jax.models.spec_fields import given_fields, read_spec
from imta_jax.nn.initialization import get_initialization
from imta_jax.techniques import IndependentHeads, ResidualHeads, TransferHeads


class _BackboneKind(NamedTuple):
    """How a backbone is built.

    Attributes:
      describe: `config.model` with its preset resolved -> a description; checks the fields.
      make: (description, image channels, rngs=) -> the backbone.
    """

    describe: Callable[[ModelConfig], Any]
    make: Callable[..., Backbone]


def _described_by(spec: type, make: Callable[..., Backbone]) -> _BackboneKind:
    return _BackboneKind(lambda config: read_spec(spec, config), make)


BACKBONES: Mapping[str, _BackboneKind] = {
    "msdnet": _BackboneKind(lambda config: plan_network(read_spec(NetworkSpec, config)), MSDNet),
    "resnet": _described_by(ResNetSpec, resnet),
    "densenet": _described_by(DenseNetSpec, densenet),
    "googlenet": _described_by(GoogLeNetSpec, googlenet),
    "hydranet": _described_by(HydraNetSpec, HydraNet),
}


def resolve_model_config(model_config: ModelConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a preset, overridden by those of the config that are not None.

    Args:
      model_config: `config.model`.

    Returns:
      All fields that are set, without `preset`, as checkpoints record them.

    Raises:
      InputError: An unknown field or preset, or a value of another type.
    """
    config = ModelConfig.from_mapping(model_config)
    if not config.preset:
        return given_fields(config)
    if config.preset not in NETWORK_PRESETS:
        raise unknown_name("config.model.preset", config.preset, NETWORK_PRESETS)
    return {**NETWORK_PRESETS[config.preset], **given_fields(config)}


def build_classifier(
    model_config: ModelConfig | Mapping[str, Any],
    *,
    num_classes: int,
    image_shape: Sequence[int],
    rngs: nnx.Rngs,
) -> MultiExitClassifier:
    """Builds a phase-I classifier: a backbone and one independent linear layer per exit.

    Args:
      model_config: `config.model`, parsed or as a mapping.
      num_classes: Number of classes K.
      image_shape: (H, W, C) of the images.
      rngs: The `params` stream is used.

    Raises:
      InputError: Unknown names, missing fields, or values out of range.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape must be (H, W, C), all above 0; found {image_shape}")
    if num_classes < 2:
        raise InputError(
            f"num_classes must be at least 2; found {num_classes}: check the class folders or the "
            "labels of config.data.source"
        )
    height, width, channels = image_shape
    config = _resolved(model_config)
    kind, init = _kind_of(config), get_initialization(config.initialization)
    backbone = kind.make(kind.describe(config), channels, rngs=rngs)
    heads = IndependentHeads(backbone.feature_widths, num_classes, init=init, rngs=rngs)
    return MultiExitClassifier(
        backbone, heads, num_classes=num_classes, image_shape=(height, width, channels)
    )


def check_model(model_config: ModelConfig) -> None:
    """Raises the errors of `build_classifier` for `config.model`, without building anything."""
    config = _resolved(model_config)
    _kind_of(config).describe(config)


def _resolved(model_config: ModelConfig | Mapping[str, Any]) -> ModelConfig:
    return ModelConfig.from_mapping(resolve_model_config(model_config))


def _kind_of(config: ModelConfig) -> _BackboneKind:
    name = config.backbone or "msdnet"
    if name not in BACKBONES:
        raise unknown_name("config.model.backbone", name, BACKBONES)
    return BACKBONES[name]


def with_collaborative_heads(
    classifier: MultiExitClassifier,
    heads_config: HeadsConfig | Mapping[str, Any],
    *,
    num_classes: int,
    rngs: nnx.Rngs,
) -> MultiExitClassifier:
    """Builds the phase-II classifier on the same backbone, which is shared and not copied.

    Args:
      classifier: A phase-I classifier. Its heads are kept beside the new ones.
      heads_config: See `config.HeadsConfig`; parsed, or a mapping.
      num_classes: Number of classes of the phase-I classifier.
      rngs: The `params` stream is used.

    Raises:
      InputError: Unknown names, another number of classes, or a phase-II classifier.
    """
    config = HeadsConfig.from_mapping(heads_config)
    if classifier.phase_one_heads is not None:
        raise InputError("classifier has collaborative heads already; pass the phase-I classifier")
    if num_classes != classifier.num_classes:
        raise InputError(
            f"num_classes must be that of the phase-I classifier, {classifier.num_classes}; found "
            f"{num_classes}"
        )
    heads = _phase_two_heads(classifier, config, rngs)
    if config.start == "phase_one":
        heads.start_from(cast(IndependentHeads, classifier.heads))
    return MultiExitClassifier(
        classifier.backbone,
        heads,
        num_classes=num_classes,
        image_shape=classifier.image_shape,
        phase_one_heads=classifier.heads,
    )


def _phase_two_heads(
    classifier: MultiExitClassifier, config: HeadsConfig, rngs: nnx.Rngs
) -> IndependentHeads | TransferHeads:
    shared = {"init": get_initialization(config.initialization), "rngs": rngs}
    sizes = (classifier.backbone.feature_widths, classifier.num_classes)
    if config.transfer == "none":
        return IndependentHeads(*sizes, **shared)
    kind = ResidualHeads if config.transfer == "identity" else TransferHeads
    return kind(*sizes, stop_gradient=config.stop_gradient, **shared)
