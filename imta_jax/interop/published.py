"""Loads weights of the published PyTorch networks (MSDNet and IMTA's phase II) into a classifier.

Names and layouts are those of the authors' state dicts. Only plain arrays are read. Pickled
checkpoints are rejected, because unpickling runs code.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imta_jax.errors import InputError
from imta_jax.models import MultiExitClassifier
from imta_jax.models.classifier import Heads
from imta_jax.models.msdnet import Bottleneck, MSDNet, MultiScaleLayer, Stem
from imta_jax.nn.batch_norm import BatchNorm
from imta_jax.nn.layers import ConvBNReLU
from imta_jax.runtime.array_files import read_npz
from imta_jax.techniques import IndependentHeads, TransferHeads


class Slot(NamedTuple):
    """A published array and the variable it is copied to.

    Attributes:
      name: name in the published state dict.
      variable: variable of this library's network.
      axes: permutation from PyTorch's layout to this library's layout.
    """

    name: str
    variable: nnx.Variable
    axes: tuple[int, ...]

    @property
    def published_shape(self) -> tuple[int, ...]:
        """Shape of the array in PyTorch's layout."""
        own = self.variable[...].shape
        shape = [0] * len(own)
        for position, axis in enumerate(self.axes):
            shape[axis] = own[position]
        return tuple(shape)


def _conv(prefix: str, layer: nnx.Conv) -> Iterator[Slot]:
    yield Slot(f"{prefix}.weight", layer.kernel, (2, 3, 1, 0))  # OIHW -> HWIO
    if layer.bias is not None:
        yield Slot(f"{prefix}.bias", layer.bias, (0,))


def _linear(prefix: str, layer: nnx.Linear) -> Iterator[Slot]:
    yield Slot(f"{prefix}.weight", layer.kernel, (1, 0))
    assert layer.bias is not None  # Every head has a bias.
    yield Slot(f"{prefix}.bias", layer.bias, (0,))


def _batch_norm(prefix: str, layer: BatchNorm) -> Iterator[Slot]:
    yield Slot(f"{prefix}.weight", layer.scale, (0,))
    yield Slot(f"{prefix}.bias", layer.bias, (0,))
    yield Slot(f"{prefix}.running_mean", layer.mean, (0,))
    yield Slot(f"{prefix}.running_var", layer.var, (0,))


def _unit(prefix: str, layer: ConvBNReLU, first: int = 0) -> Iterator[Slot]:
    """A convolution and its BatchNorm, entries `first` and `first + 1` of a Sequential."""
    yield from _conv(f"{prefix}.{first}", layer.conv)
    yield from _batch_norm(f"{prefix}.{first + 1}", layer.norm)


def _stem(prefix: str, stem: Stem) -> Iterator[Slot]:
    # The finest scale of the ImageNet stem is a Sequential. All others have one named `net`.
    yield from _unit(f"{prefix}.layers.0" + ("" if stem.pools else ".net"), stem.first)
    for scale, layer in enumerate(stem.coarser, start=1):
        yield from _unit(f"{prefix}.layers.{scale}.net", layer)


def _bottleneck(prefix: str, branch: Bottleneck) -> Iterator[Slot]:
    yield from _unit(f"{prefix}.net", branch.reduce)
    yield from _unit(f"{prefix}.net", branch.expand, first=3)  # Entry 2 is the ReLU.


def _layer(prefix: str, layer: MultiScaleLayer) -> Iterator[Slot]:
    without_strided = len(layer.normal) - len(layer.strided)
    for scale, branch in enumerate(layer.strided, start=without_strided):
        yield from _bottleneck(f"{prefix}.layers.{scale}.conv_down", branch)
    for scale, branch in enumerate(layer.normal):
        yield from _bottleneck(f"{prefix}.layers.{scale}.conv_normal", branch)


def _backbone(backbone: MSDNet) -> Iterator[Slot]:
    yield from _stem("blocks.0.0", backbone.first)
    for b, stage in enumerate(backbone.stages):
        entry = 1 if b == 0 else 0  # The stem is the first entry of the first block.
        for layer in stage:
            yield from _layer(f"blocks.{b}.{entry}", layer)
            entry += 1
            for scale, unit in enumerate(layer.transition):
                yield from _unit(f"blocks.{b}.{entry}.m.{scale}.net", unit)
            entry += 1 if layer.transition else 0
    for i, head in enumerate(backbone.exits):
        for n, unit in enumerate(head.convolutions):
            yield from _unit(f"classifier.{i}.m.{n}.net", unit)


def _linear_layers(heads: Heads | None) -> Sequence[nnx.Linear]:
    """The linear layer of each exit.

    Raises:
      ValueError: the heads are not of this library.
    """
    if not isinstance(heads, IndependentHeads | TransferHeads):
        raise InputError(
            f"heads of type {type(heads).__name__}; published weights exist for IndependentHeads, "
            "ResidualHeads and TransferHeads"
        )
    return heads.linears


def _phase_two_heads(heads: Heads) -> Iterator[Slot]:
    for i, layer in enumerate(_linear_layers(heads)):
        yield from _linear(f"classifier.{i}", layer)
    if isinstance(heads, TransferHeads):
        for i, (transform, norm) in enumerate(zip(heads.transfers, heads.norms, strict=True)):
            yield from _linear(f"isc_modules.{i}.0", transform)
            yield from _batch_norm(f"isc_modules.{i}.1", norm)


def published_slots(classifier: MultiExitClassifier) -> dict[str, Slot]:
    """Slots of all variables of a network, by name in the authors' state dict.

    Phase I has `blocks.*` and `classifier.<i>.*`. Phase II has the same names with the prefix
    `net.`, including the phase-I linear layers, and `classifier.<i>.{weight,bias}` and
    `isc_modules.*`.

    Args:
      classifier: a phase-I or phase-II classifier with an MSDNet backbone.

    Returns:
      The slots by published name.

    Raises:
      ValueError: the backbone is not an MSDNet, or the heads are not of this library.
    """
    if not isinstance(classifier.backbone, MSDNet):
        raise InputError(
            f"published weights exist for MSDNet only; found {type(classifier.backbone).__name__}"
        )
    phase_two = classifier.phase_one_heads is not None
    prefix = "net." if phase_two else ""
    phase_one_heads = classifier.phase_one_heads if phase_two else classifier.heads
    slots = list(_backbone(classifier.backbone))
    for i, layer in enumerate(_linear_layers(phase_one_heads)):
        slots += _linear(f"classifier.{i}.linear", layer)
    named = {prefix + slot.name: slot for slot in slots}
    if phase_two:
        named |= {slot.name: slot for slot in _phase_two_heads(classifier.heads)}
    return {name: slot._replace(name=name) for name, slot in named.items()}


def load_published_weights(
    classifier: MultiExitClassifier, arrays: Mapping[str, np.ndarray]
) -> None:
    """Copies published PyTorch weights into a classifier, in place, as float32.

    Args:
      classifier: phase I or II, of the same topology and number of classes.
      arrays: arrays in PyTorch's layout by PyTorch name. `num_batches_tracked` is ignored.

    Raises:
      ValueError: names are missing or unknown, or shapes differ. The message lists all of them, and
        nothing is copied.
    """
    slots = published_slots(classifier)
    values = {n: np.asarray(a) for n, a in arrays.items() if not n.endswith("num_batches_tracked")}
    problems = [f"missing: {name}" for name in sorted(slots.keys() - values.keys())]
    problems += [f"not in this network: {name}" for name in sorted(values.keys() - slots.keys())]
    for name in sorted(slots.keys() & values.keys()):
        expected, shape = slots[name].published_shape, values[name].shape
        if expected != shape:
            problems.append(f"shape of {name}: expected {expected}, found {shape}")
    if problems:
        raise InputError(
            f"the weights belong to another network ({len(problems)} differences); check num_exits,"
            " base, step, growth, prune, the number of classes and the phase:\n  "
            + "\n  ".join(problems)
        )
    for name, slot in slots.items():
        value = np.asarray(values[name], np.float32).transpose(slot.axes)
        slot.variable[...] = jax.device_put(jnp.asarray(value), slot.variable[...].sharding)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads an `.npz` of plain arrays by published name. Nothing is unpickled.

    Args:
      path: the file.

    Returns:
      The arrays by name.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: not an `.npz` of plain arrays. The message explains how to convert a PyTorch
        checkpoint.
    """
    return read_npz(path)
