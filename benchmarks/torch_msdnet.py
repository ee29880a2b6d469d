"""MSDNet in PyTorch, for comparison: from the same plan and with the same weights.

Built from `imta_jax.models.plan` in PyTorch's usual style: one module per convolution, NCHW,
autograd. Modules have the names of the JAX network, so that weights and gradients match by name.
`verify` compares it with recorded numbers of the published network before anything is timed.

    python -m benchmarks.torch_msdnet
"""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from flax import nnx as flax_nnx
from torch import nn

from imta_jax.config import ModelConfig
from imta_jax.interop import published_slots
from imta_jax.models.plan import Branch, Layer, NetworkPlan, NetworkSpec, plan_network
from imta_jax.models.spec_fields import read_spec
from imta_jax.training.state import named_arrays
from tests import golden

State = list[torch.Tensor]
# Last part of a parameter's name in the JAX network -> in PyTorch.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
GOLDEN = "msdnet_cifar_small"
RECORDED = {"off": "grad_plain/", "coarsest": "grad_ge/", "all": "grad_ge_allscales/"}


class _Rescale(torch.autograd.Function):
    """Identity in the forward pass; multiplies the gradient by `scale` (paper Eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.scale, None


class Unit(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x [N, inputs, H, W] to [N, outputs, ceil(H/stride), ceil(W/stride)]."""
        return nn.functional.relu(self.norm(self.conv(x)), inplace=True)


class Stem(nn.Module):
    """Images to the first feature map of every scale."""

    def __init__(self, plan: NetworkPlan, image_channels: int):
        super().__init__()
        channels = plan.stem_channels
        self.pools = plan.spec.stem == "imagenet"
        kernel, stride = (7, 2) if self.pools else (3, 1)
        self.first = Unit(image_channels, channels[0], kernel, stride, bias=self.pools)
        self.coarser = nn.ModuleList(Unit(i, o, 3, 2) for i, o in itertools.pairwise(channels))

    def forward(self, images: torch.Tensor) -> State:
        """Maps images [N, C, H, W] to one map per scale, finest first."""
        x = self.first(images)
        state = [nn.functional.max_pool2d(x, 3, 2, 1) if self.pools else x]
        for unit in self.coarser:
            state.append(unit(state[-1]))
        return state


class Bottleneck(nn.Module):
    """1x1 convolution, then a 3x3 convolution with stride 1 or 2."""

    def __init__(self, branch: Branch):
        super().__init__()
        self.reduce = Unit(branch.inputs, branch.width, 1)
        self.expand = Unit(branch.width, branch.outputs, 3, branch.stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        return self.expand(self.reduce(x))


class MultiScaleLayer(nn.Module):
    """A dense layer at all live scales: concatenates input, strided and normal branch."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.strided = nn.ModuleList(Bottleneck(b) for b in layer.strided if b is not None)
        self.normal = nn.ModuleList(Bottleneck(b) for b in layer.normal)
        self.transition = nn.ModuleList(Unit(i, o, 1) for i, o in layer.transition or ())
        self.dropped = len(layer.inputs) - len(layer.normal)
        self.unstrided = len(layer.normal) - len(self.strided)

    def forward(self, state: State) -> State:
        """Maps the feature maps of the live scales, finest first, to those of the next layer."""
        outputs = []
        for scale, normal in enumerate(self.normal):
            source = scale + self.dropped
            parts = [state[source]]
            if scale >= self.unstrided:
                parts.append(self.strided[scale - self.unstrided](state[source - 1]))
            joined = torch.cat([*parts, normal(state[source])], dim=1)
            outputs.append(self.transition[scale](joined) if self.transition else joined)
        return outputs


class ExitFeatures(nn.Module):
    """Features of an exit from the coarsest map: two strided convolutions and mean pooling."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.convolutions = nn.ModuleList(Unit(i, width, 3, 2) for i in (inputs, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, inputs, H, W] to [N, width]."""
        for unit in self.convolutions:
            x = unit(x)
        return x.mean(dim=(2, 3))


class Backbone(nn.Module):
    """Stem, stages and exit features."""

    def __init__(self, plan: NetworkPlan, image_channels: int):
        super().__init__()
        self.first = Stem(plan, image_channels)
        self.stages = nn.ModuleList(
            nn.ModuleList(MultiScaleLayer(layer) for layer in stage) for stage in plan.stages
        )
        widths = zip(plan.head_inputs, plan.head_widths, strict=True)
        self.exits = nn.ModuleList(ExitFeatures(i, w) for i, w in widths)


class Heads(nn.Module):
    """One linear layer per exit, as in phase I."""

    def __init__(self, plan: NetworkPlan, num_classes: int):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(w, num_classes) for w in plan.head_widths)


class TorchMSDNet(nn.Module):
    """The phase-I classifier.

    Args:
      plan: topology of the network.
      num_classes: K.
      image_channels: C.
    """

    def __init__(self, plan: NetworkPlan, num_classes: int, image_channels: int = 3):
        super().__init__()
        self.backbone = Backbone(plan, image_channels)
        self.heads = Heads(plan, num_classes)

    def forward(self, images: torch.Tensor, equilibrium: str = "off") -> torch.Tensor:
        """Logits [E, N, K] of normalized images [N, C, H, W], as in `MultiExitClassifier`."""
        state, logits = self.backbone.first(images), []
        stages = len(self.backbone.stages)
        for i, stage in enumerate(self.backbone.stages):
            for layer in stage:
                state = layer(state)
            for_exit, state = _split_gradient(state, i, stages, equilibrium)
            logits.append(self.heads.linears[i](self.backbone.exits[i](for_exit)))
        return torch.stack(logits).float()


def _split_gradient(
    state: State, exit_index: int, num_exits: int, equilibrium: str
) -> tuple[torch.Tensor, State]:
    """The coarsest map for the exit and all maps for the next stage, with rescaled gradients."""
    if equilibrium == "off":
        return state[-1], state
    remaining = num_exits - exit_index
    kept = len(state) - 1 if equilibrium == "coarsest" else 0
    scale = (remaining - 1) / remaining
    onward = state[:kept] + [_Rescale.apply(x, scale) for x in state[kept:]]
    return _Rescale.apply(state[-1], 1 / remaining), onward


def to_torch_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of the JAX network (`named_arrays`) by PyTorch name and in PyTorch's layout."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {torch_name(name): a.transpose(axes[a.ndim]) for name, a in arrays.items()}


def torch_arrays(classifier: flax_nnx.Module) -> dict[str, np.ndarray]:
    """`to_torch_names` of all arrays of a classifier."""
    named = named_arrays(flax_nnx.state(classifier))
    return to_torch_names({name: np.array(array) for name, array in named.items()})


def torch_name(name: str) -> str:
    """PyTorch's name of the parameter or buffer `name` of the JAX network."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.{LEAVES.get(leaf, leaf)}"


def new_network(
    fields: Mapping[str, Any], num_classes: int, arrays: Mapping[str, np.ndarray]
) -> TorchMSDNet:
    """A network with given weights.

    Args:
      fields: all fields of `config.model`, with those of the preset.
      num_classes: K.
      arrays: every parameter and running statistic by name, from `torch_arrays`.
    """
    fields = {name: value for name, value in fields.items() if name != "backbone"}
    channels = arrays["backbone.first.first.conv.weight"].shape[1]
    spec = read_spec(NetworkSpec, ModelConfig.from_mapping(fields))
    network = TorchMSDNet(plan_network(spec), num_classes, channels)
    parameters = {
        n: x for n, x in network.state_dict().items() if not n.endswith("batches_tracked")
    }
    if parameters.keys() != arrays.keys():
        raise ValueError(f"names differ: {sorted(parameters.keys() ^ arrays.keys())[:10]}")
    with torch.no_grad():
        for name, tensor in parameters.items():
            # load_state_dict would also require num_batches_tracked.
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])).reshape(tensor.shape))
    return network


def exit_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy [E] of logits [E, N, K] against labels [N]."""
    return torch.stack([nn.functional.cross_entropy(exit_logits, labels) for exit_logits in logits])


def verify() -> dict[str, float]:
    """Compares the network with recorded numbers of the published one.

    Returns:
      Name -> largest deviation as a fraction of the tolerance: relative 1e-4 plus absolute 1e-5 for
      logits, relative 1e-5 for the loss, 1e-4 of the largest entry for a gradient.

    Raises:
      ValueError: a deviation exceeds its tolerance.
    """
    recorded, classifier = golden.arrays(GOLDEN), golden.phase_one_network(GOLDEN)
    arguments = golden.metadata(GOLDEN)["args"]
    variables = {id(v): ".".join(map(str, p)) for p, v in flax_nnx.iter_graph(classifier)}
    names = {
        n: torch_name(variables[id(s.variable)]) for n, s in published_slots(classifier).items()
    }
    images, labels = torch.tensor(recorded["x"]), torch.tensor(recorded["labels"]).long()

    def fresh() -> TorchMSDNet:
        fields, weights = golden.model_fields(arguments), torch_arrays(classifier)
        return new_network(fields, arguments["num_classes"], weights)

    with torch.no_grad():
        shares = {"eval/logits": _share(fresh().eval()(images), recorded["eval/logits"])}
    for equilibrium, prefix in RECORDED.items():
        network = fresh().train()
        logits = network(images, equilibrium)
        loss = exit_losses(logits, labels).sum()
        loss.backward()
        shares["train/logits"] = _share(logits.detach(), recorded["train/logits"])
        shares["train/loss"] = _share(loss.detach(), recorded["train/loss"], 1e-5, 0)
        expected = golden.below(GOLDEN, "grad_plain/") | golden.below(GOLDEN, prefix)
        shares[prefix + "*"] = _gradients_share(network, names, expected)
        after = {n: x for n, x in network.state_dict().items() if "running" in n}
        moved = golden.below(GOLDEN, "bn_after/")
        shares["bn_after/*"] = max(_share(after[names[n]], moved[n]) for n in moved)
    beyond = {name: share for name, share in shares.items() if not share <= 1}
    if beyond:
        raise ValueError(
            f"the PyTorch network differs from the recorded one: {beyond} times the tolerance"
        )
    return {name: float(f"{share:.2g}") for name, share in shares.items()}


def _share(
    values: torch.Tensor, expected: np.ndarray, relative: float = 1e-4, absolute: float = 1e-5
) -> float:
    difference = np.abs(values.numpy() - expected)
    return float((difference / (absolute + relative * np.abs(expected))).max())


def _gradients_share(
    network: TorchMSDNet, names: Mapping[str, str], expected: Mapping[str, np.ndarray]
) -> float:
    """Largest deviation over all parameters; unused ones have no gradient, recorded as zeros."""
    by_name = dict(network.named_parameters())
    if {names[n] for n in expected} != by_name.keys():
        raise ValueError("not every parameter has a recorded gradient")
    worst = 0.0
    for published, values in expected.items():
        gradient = by_name[names[published]].grad
        actual = np.zeros_like(values) if gradient is None else gradient.numpy()
        largest = np.abs(values).max()
        tolerance = 1e-4 * largest if largest else 1e-12
        worst = max(worst, np.abs(actual - values).max() / tolerance)
    return float(worst)


if __name__ == "__main__":
    print(verify())
