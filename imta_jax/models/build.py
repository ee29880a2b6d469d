"""Builds classifiers from `config.model` and the heads' config; registers the backbones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from imta_jax.config import HeadsConfig, ModelConfig
from imta_jax.errors import InputError, unknown_name
from imta_jax.models.baselines.densenet import DenseNetSpec, densenet
from imta_jax.models.baselines.googlenet import GoogLeNetSpec, googlenet
from imta_jax.models.baselines.hydranet import HydraNet, HydraNetSpec
from imta_jax.models.baselines.resnet import ResNetSpec, resnet
from imta_jax.models.checks import check_backbone
from imta_jax.models.classifier import Backbone, MultiExitClassifier
from imta_jax.models.heads import make_heads, start_heads
from imta_jax.models.msdnet import MSDNet
from imta_jax.models.plan import NetworkSpec, plan_network
from imta_jax.models.presets import NETWORK_PRESETS
from imta_jax.models.spec_fields import explicit_fields, read_spec
from imta_jax.runtime.factories import call_factory
from imta_jax.runtime.registry import (
    BACKBONES,
    HEADS,
    check_names,
    register_backbone,
)

# Fields of `config.model` that a custom backbone takes.
_CUSTOM_FIELDS = ("backbone", "options", "heads", "heads_options", "initialization")


@dataclasses.dataclass(frozen=True)
class IncludedBackbone:
    """The factory of a backbone of this package, whose fields are those of `config.model`.

    Attributes:
      describe: `config.model` with its preset resolved -> a description; checks the fields.
      make: (description, image channels, rngs=) -> the backbone.
    """

    describe: Callable[[ModelConfig], Any]
    make: Callable[..., Backbone]

    def __call__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        rngs: nnx.Rngs,
    ) -> Backbone:
        """Makes the backbone."""
        return self.make(self.describe(config), image_shape[2], rngs=rngs)


def _described_by(spec: type, make: Callable[..., Backbone]) -> IncludedBackbone:
    return IncludedBackbone(lambda config: read_spec(spec, config), make)


register_backbone("msdnet")(
    IncludedBackbone(lambda config: plan_network(read_spec(NetworkSpec, config)), MSDNet)
)
register_backbone("resnet")(_described_by(ResNetSpec, resnet))
register_backbone("densenet")(_described_by(DenseNetSpec, densenet))
register_backbone("googlenet")(_described_by(GoogLeNetSpec, googlenet))
register_backbone("hydranet")(_described_by(HydraNetSpec, HydraNet))


def resolve_model_config(model_config: ModelConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a preset, overridden by those of the config that are not None.

    A preset does not apply to a custom backbone.

    Args:
      model_config: `config.model`.

    Returns:
      All fields that are set, without `preset`, as checkpoints record them.

    Raises:
      InputError: an unknown field or preset, or a value of another type.
    """
    return explicit_fields(_resolved(model_config))


def _resolved(model_config: ModelConfig | Mapping[str, Any]) -> ModelConfig:
    """The config with the preset's values in the fields that are None."""
    config = ModelConfig.from_mapping(model_config)
    if not config.preset or not _is_included(config.backbone):
        return config
    if config.preset not in NETWORK_PRESETS:
        raise unknown_name("config.model.preset", config.preset, NETWORK_PRESETS)
    preset = NETWORK_PRESETS[config.preset]
    unset = {name: x for name, x in preset.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **unset)


def gate_weight_of(model_config: ModelConfig) -> float:
    """Weight of the gate's loss in phase I; 0 for a network without a gate."""
    return _resolved(model_config).gate_weight or 0.0


def build_classifier(
    model_config: ModelConfig | Mapping[str, Any],
    *,
    num_classes: int,
    image_shape: Sequence[int],
    rngs: nnx.Rngs,
) -> MultiExitClassifier:
    """Builds a phase-I classifier: a backbone and heads, by default one linear layer per exit.

    Args:
      model_config: `config.model`, parsed or as a mapping.
      num_classes: number of classes K.
      image_shape: (H, W, C) of the images.
      rngs: the `params` stream is used.

    Raises:
      InputError: unknown names, missing fields, or values out of range.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape must be (H, W, C), all above 0; found {image_shape}")
    if num_classes < 2:
        raise InputError(
            f"num_classes must be at least 2; found {num_classes}: check the class folders or the "
            "labels of config.data.source"
        )
    height, width, channels = image_shape
    config, shape = _resolved(model_config), (height, width, channels)
    backbone = _make_backbone(config, num_classes, shape, rngs)
    heads = make_heads(
        _phase_one_heads(config),
        feature_widths=tuple(backbone.feature_widths),
        num_classes=num_classes,
        rngs=rngs,
        field="config.model.heads",
    )
    return MultiExitClassifier(backbone, heads, num_classes=num_classes, image_shape=shape)


def _make_backbone(
    config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int], rngs: nnx.Rngs
) -> Backbone:
    factory = _factory_of(config)
    if isinstance(factory, IncludedBackbone):
        return factory(config, num_classes=num_classes, image_shape=image_shape, rngs=rngs)
    field = f"config.model.backbone {config.backbone!r}"
    sizes = {"num_classes": num_classes, "image_shape": image_shape}
    backbone = call_factory(
        factory, config.options, field, "config.model.options", **sizes, rngs=rngs
    )
    return check_backbone(backbone, image_shape, field)


def _phase_one_heads(config: ModelConfig) -> HeadsConfig:
    return HeadsConfig(
        transfer=config.heads,
        options=config.heads_options,
        initialization=config.initialization,
    )


def check_model(model_config: ModelConfig) -> None:
    """Raises the errors of `build_classifier` for `config.model`, without building anything."""
    config = _resolved(model_config)
    factory = _factory_of(config)
    if isinstance(factory, IncludedBackbone):
        factory.describe(config)
    HEADS.get(config.heads, "config.model.heads")


def _is_included(backbone: str | None) -> bool:
    return backbone is None or BACKBONES.is_built_in(backbone)


def _factory_of(config: ModelConfig) -> Callable[..., Backbone]:
    name = config.backbone or "msdnet"
    factory = BACKBONES.get(name, "config.model.backbone")
    if not isinstance(factory, IncludedBackbone):
        label = f"field of config.model with backbone {name!r}, which takes config.model.options:"
        check_names(explicit_fields(config), _CUSTOM_FIELDS, label)
    return factory


def with_collaborative_heads(
    classifier: MultiExitClassifier,
    heads_config: HeadsConfig | Mapping[str, Any],
    *,
    num_classes: int,
    rngs: nnx.Rngs,
) -> MultiExitClassifier:
    """Builds the phase-II classifier on the same backbone, which is shared and not copied.

    Args:
      classifier: a phase-I classifier. The result also holds its heads.
      heads_config: see `config.HeadsConfig`; parsed, or a mapping.
      num_classes: number of classes of the phase-I classifier.
      rngs: the `params` stream is used.

    Raises:
      InputError: unknown names, another number of classes, or a phase-II classifier.
    """
    config = HeadsConfig.from_mapping(heads_config)
    if classifier.phase_one_heads is not None:
        raise InputError("classifier has collaborative heads already; pass the phase-I classifier")
    if num_classes != classifier.num_classes:
        raise InputError(
            f"num_classes must be that of the phase-I classifier, {classifier.num_classes}; found "
            f"{num_classes}"
        )
    heads = make_heads(
        config,
        feature_widths=tuple(classifier.backbone.feature_widths),
        num_classes=num_classes,
        rngs=rngs,
        field="config.phase_two.transfer" if config is heads_config else "heads_config.transfer",
    )
    if config.start == "phase_one":
        start_heads(heads, classifier.heads)
    return MultiExitClassifier(
        classifier.backbone,
        heads,
        num_classes=num_classes,
        image_shape=classifier.image_shape,
        phase_one_heads=classifier.heads,
    )
