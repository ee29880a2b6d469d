"""Names of topologies such as "v5e:16x16", "h100:8" or "my_gpu.txtpb:4"."""

import dataclasses
import math
import re
from pathlib import Path

from imta_jax.errors import InputError, closest_first
from imta_jax.planning.chips import GPU_TARGETS, TPU_CHIPS, Chip, gpu_chip

_FLAT_SHAPES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE_SHAPES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x12", "8x8x16", "8x16x16"),
)
_GPUS_PER_HOST = 8
_GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are connected to each other.

    Attributes:
      name: as given, for example "v5e:16x16".
      chip: kind of the chips.
      shape: chips along each axis of the torus; (count,) for GPUs.
      target_config: text of XLA's description of a GPU; "" for TPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    target_config: str = ""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)


def valid_topologies() -> list[str]:
    """All names of TPU topologies, and the usual numbers of GPUs."""
    tpus = [
        f"{name}:{shape}"
        for name, chip in TPU_CHIPS.items()
        for shape in (_FLAT_SHAPES if chip.torus_axes == 2 else _CUBE_SHAPES)
    ]
    return tpus + [f"{name}:{count}" for name in GPU_TARGETS for count in _GPU_COUNTS]


def parse_topology(text: str) -> Topology:
    """A topology from its name.

    Args:
      text: "v5e:16x16" (also v4, v5p, v6e), "h100:8" (also h200), or "FILE:8", where FILE has the
        text format of XLA's `GpuTargetConfigProto`.

    Raises:
      InputError: an unknown name; the message lists the closest valid ones.
    """
    kind, _, shape = text.rpartition(":")
    if kind in TPU_CHIPS and text in valid_topologies():
        sides = tuple(int(side) for side in shape.split("x"))
        return Topology(text, TPU_CHIPS[kind], sides)
    if kind in GPU_TARGETS and re.fullmatch("[1-9][0-9]*", shape):
        return _gpus(text, kind, GPU_TARGETS[kind], int(shape))
    path = Path(kind).expanduser()
    if kind not in TPU_CHIPS and path.is_file() and re.fullmatch("[1-9][0-9]*", shape):
        return _gpus(text, path.stem, path, int(shape))
    names = ", ".join(closest_first(text, valid_topologies())[:_SHOWN])
    raise InputError(
        f"unknown --topology={text!r}; the closest valid names: {names}; or FILE:COUNT for the"
        " GpuTargetConfig of another GPU"
    )


def _gpus(text: str, name: str, path: Path, count: int) -> Topology:
    if count > _GPUS_PER_HOST and count % _GPUS_PER_HOST:
        raise InputError(
            f"--topology={text!r} has {count} GPUs; expected at most {_GPUS_PER_HOST}, or a"
            f" multiple of {_GPUS_PER_HOST}, the GPUs of a host"
        )
    try:
        config = path.read_text()
        return Topology(text, gpu_chip(name, config), (count,), config)
    except (KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no GpuTargetConfig in text format: {error}; see"
            f" {GPU_TARGETS['h100']} for an example"
        ) from error


def gpu_grid(topology: Topology) -> str:
    """XLA's name of a GPU topology: partitions x hosts x GPUs per host."""
    hosts = -(-topology.chips // _GPUS_PER_HOST)
    return f"1x{hosts}x{topology.chips // hosts}"
