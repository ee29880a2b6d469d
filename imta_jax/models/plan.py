"""The topology of a multi-scale dense network (MSDNet, Huang et al., ICLR 2018), in plain integers.

A plan lists, layer by layer, the live scales, the convolutions and their widths. The modules in
`msdnet.py` are built from it.
"""

import dataclasses
import math
from collections.abc import Sequence

from imta_jax.errors import InputError
from imta_jax.models.spec_fields import check_one_of, check_positive

STEMS = ("cifar", "imagenet")
STEP_MODES = ("even", "lin_grow")
PRUNE_MODES = ("max", "min")
CIFAR_HEAD_WIDTH = 128


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """The fields of `config.model` for an MSDNet.

    Attributes:
      stem: "cifar" (3x3) or "imagenet" (7x7 stride 2, max-pool).
      num_exits: number of exits, the last one included.
      base: layers before the first exit.
      step: layers between exits ("even"), or their growth per exit ("lin_grow").
      step_mode: "even" or "lin_grow".
      channels: channels of the stem at the finest scale.
      growth_rate: channels that a layer adds at the finest scale.
      growth_factors: multiplier of channels and growth per scale, finest first.
      bottleneck_factors: bottleneck width over branch outputs, per scale that the branch reads.
      prune: "max" drops a scale every ceil(L/S) layers, "min" as late as possible.
      reduction: fraction of channels that a transition keeps; 0 for no transitions.
      initialization: a name in `imta_jax.nn.initialization.INITIALIZATIONS`.

    Raises:
      InputError: a field out of range; the message names it.
    """

    stem: str
    num_exits: int
    base: int
    step: int
    step_mode: str
    channels: int
    growth_rate: int
    growth_factors: tuple[int, ...]
    bottleneck_factors: tuple[int, ...]
    prune: str
    reduction: float
    initialization: str = "he_normal"

    def __post_init__(self) -> None:
        for field, valid in (("stem", STEMS), ("step_mode", STEP_MODES), ("prune", PRUNE_MODES)):
            check_one_of(self, field, valid)
        check_positive(self, "num_exits", "base", "step", "channels", "growth_rate")
        _check_factors(self)
        if not 0 <= self.reduction <= 1:
            raise InputError(
                f"config.model.reduction must be between 0 and 1; found {self.reduction}"
            )
        scales, depth = len(self.growth_factors), sum(layers_per_stage(self))
        if live_scales(self, 1, depth)[0] != scales:
            raise InputError(
                f"config.model.prune='min' needs at least {scales - 1} layers for {scales} scales; "
                f"num_exits, base and step give {depth}: raise one of them"
            )


@dataclasses.dataclass(frozen=True)
class Branch:
    """A bottleneck: 1x1 convolution from `inputs` to `width`, then 3x3 with `stride`."""

    inputs: int
    width: int
    outputs: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: at every output scale a strided branch from the finer map and a normal branch.

    Attributes:
      number: k, from 1 to L over the network.
      first_scale: index of the finest output scale, 0 being the network's finest.
      inputs: channels of the input maps, finest first.
      strided: per output scale the branch that reads the next finer map, or None.
      normal: per output scale the branch that reads the map of that scale.
      transition: (inputs, outputs) per scale of the 1x1 convolutions that follow, or None.
    """

    number: int
    first_scale: int
    inputs: tuple[int, ...]
    strided: tuple[Branch | None, ...]
    normal: tuple[Branch, ...]
    transition: tuple[tuple[int, int], ...] | None

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels per output scale, after the transition; finest first."""
        if self.transition:
            return tuple(out for _, out in self.transition)
        return self.concatenated

    @property
    def concatenated(self) -> tuple[int, ...]:
        """Channels per scale before the transition: inputs, strided and normal outputs."""
        remaining = self.inputs[len(self.inputs) - len(self.normal) :]
        return tuple(
            width + (strided.outputs if strided else 0) + normal.outputs
            for width, strided, normal in zip(remaining, self.strided, self.normal, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class NetworkPlan:
    """A network.

    Attributes:
      spec: the fields that it was planned from.
      stem_channels: channels of the stem, per scale.
      stages: the layers of each stage.
      head_widths: channels of the pooled features, per exit.
    """

    spec: NetworkSpec
    stem_channels: tuple[int, ...]
    stages: tuple[tuple[Layer, ...], ...]
    head_widths: tuple[int, ...]

    @property
    def head_inputs(self) -> tuple[int, ...]:
        """Channels of the coarsest map at each exit."""
        return tuple(stage[-1].outputs[-1] for stage in self.stages)


def layers_per_stage(spec: NetworkSpec) -> tuple[int, ...]:
    """Layers before each exit: `base`, then `step`, or `step * i + 1` for stage i in lin_grow."""
    later = range(1, spec.num_exits)
    if spec.step_mode == "even":
        return (spec.base, *(spec.step for _ in later))
    return (spec.base, *(spec.step * i + 1 for i in later))


def live_scales(spec: NetworkSpec, k: int, num_layers: int) -> tuple[int, int]:
    """Numbers of input and output scales of layer k of `num_layers` (from 1)."""
    scales = len(spec.growth_factors)
    if spec.prune == "min":
        return min(scales, num_layers - k + 2), min(scales, num_layers - k + 1)
    interval = math.ceil(num_layers / scales)
    return scales - max(0, k - 2) // interval, scales - (k - 1) // interval


def _has_transition(spec: NetworkSpec, k: int, num_layers: int) -> bool:
    if spec.reduction == 0:
        return False
    if spec.prune == "min":
        return k in (num_layers // 3, 2 * num_layers // 3)
    inputs, outputs = live_scales(spec, k, num_layers)
    return inputs > outputs


def _branch(spec: NetworkSpec, inputs: int, read: int, outputs: int, stride: int) -> Branch:
    width = min(inputs, spec.bottleneck_factors[read] * outputs)
    return Branch(inputs, width, outputs, stride)


def _plan_layer(spec: NetworkSpec, k: int, num_layers: int, inputs: Sequence[int]) -> Layer:
    """Plans layer k; `inputs` are the channels per live scale, finest first."""
    scales_in, scales_out = live_scales(spec, k, num_layers)
    scales = len(spec.growth_factors)
    first_in, first_out = scales - scales_in, scales - scales_out
    strided: list[Branch | None] = []
    normal: list[Branch] = []
    for scale in range(first_out, scales):
        added = spec.growth_rate * spec.growth_factors[scale]
        below = inputs[scale - first_in - 1] if scale > first_in else None
        if below is not None:
            added //= 2  # the two branches share the growth
            strided.append(_branch(spec, below, scale - 1, added, 2))
        else:
            strided.append(None)
        normal.append(_branch(spec, inputs[scale - first_in], scale, added, 1))
    layer = Layer(k, first_out, tuple(inputs), tuple(strided), tuple(normal), None)
    if not _has_transition(spec, k, num_layers):
        return layer
    return dataclasses.replace(layer, transition=_transition(spec, layer))


def _transition(spec: NetworkSpec, layer: Layer) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) per scale: n x factor channels become floor(reduction * n) x factor."""
    factors = spec.growth_factors[layer.first_scale :]
    return tuple(
        (width, math.floor(spec.reduction * (width // factor)) * factor)
        for width, factor in zip(layer.concatenated, factors, strict=True)
    )


def plan_network(spec: NetworkSpec) -> NetworkPlan:
    """Plans every layer of a network.

    Raises:
      InputError: the transitions leave a scale without channels.
    """
    depths = layers_per_stage(spec)
    num_layers = sum(depths)
    channels = stem_channels = tuple(spec.channels * factor for factor in spec.growth_factors)
    stages, k = [], 0
    for depth in depths:
        stage = []
        for _ in range(depth):
            k += 1
            stage.append(_plan_layer(spec, k, num_layers, channels))
            channels = stage[-1].outputs
        stages.append(tuple(stage))
    if any(width == 0 for stage in stages for layer in stage for width in layer.outputs):
        raise InputError(
            f"config.model.reduction={spec.reduction} leaves a scale without channels; raise it"
        )
    coarsest = [stage[-1].outputs[-1] for stage in stages]
    cifar = spec.stem == "cifar"
    heads = tuple(CIFAR_HEAD_WIDTH if cifar else width for width in coarsest)
    return NetworkPlan(spec, stem_channels, tuple(stages), heads)


def _check_factors(spec: NetworkSpec) -> None:
    """Raises an InputError unless there is a growth and a bottleneck factor for every scale."""
    factors = (*spec.growth_factors, *spec.bottleneck_factors)
    if not spec.growth_factors or len(spec.growth_factors) != len(spec.bottleneck_factors):
        raise InputError(
            "config.model.growth_factors and bottleneck_factors need one entry per scale; found "
            f"{spec.growth_factors} and {spec.bottleneck_factors}"
        )
    if min(factors) < 1:
        raise InputError(
            "config.model.growth_factors and bottleneck_factors must be integers above 0; found "
            f"{factors}"
        )
    for factor in spec.growth_factors[1:]:  # two branches share the growth of a scale
        if spec.growth_rate * factor % 2:
            raise InputError(
                "config.model.growth_rate x growth_factors must be even beyond the finest scale; "
                f"found {spec.growth_rate} x {factor}: use growth_rate={spec.growth_rate + 1}"
            )
