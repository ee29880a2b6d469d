"""Parsing of XLA's optimized programs in text form (HLO)."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1}
BYTES |= {"s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
# f32[128,32,32,3]{0,2,3,1:T(8,128)S(1)}
_ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,<=]*)\](?:\{{([\d,]*)(?::([^}}]*))?\}})?")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?(%\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$", re.MULTILINE
)
_COMPUTATION = re.compile(r"^(ENTRY )?(%\S+) [^\n]*\{\n(.*?)\n\}", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """An array in a program.

    Attributes:
      dtype: as XLA names it, for example "bf16".
      dims: its shape.
      padded_bytes: bytes that its tiles take.
      in_device_memory: whether it lies in the main memory; otherwise in memory on the chip.
    """

    dtype: str
    dims: tuple[int, ...]
    padded_bytes: int
    in_device_memory: bool

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return BYTES[self.dtype] * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: name with its percent sign.
      shapes: the arrays of the result.
      opcode: operation, for example "fusion".
      operands: names of the operands.
      attributes: the rest of the line.
    """

    name: str
    shapes: tuple[ArrayShape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """The operation of the traced function that it comes from, or ""."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 without one."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else 0

    @property
    def bytes(self) -> int:
        """Bytes of the result without padding."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def padded_bytes(self) -> int:
        """Bytes of the result with padding."""
        return sum(shape.padded_bytes for shape in self.shapes)


class Module:
    """A program.

    Args:
      text: HLO text.

    Attributes:
      text: the text.
      entry: name of the computation that runs first.
    """

    def __init__(self, text: str):
        self.text, self.entry, self._bodies = text, "", {}
        for is_entry, name, body in _COMPUTATION.findall(text):
            self._bodies[name] = body
            if is_entry:
                self.entry = name
        self._parsed: dict[str, list[Instruction]] = {}

    def instructions(self, computation: str) -> list[Instruction]:
        """The instructions of a computation."""
        if computation not in self._parsed:
            self._parsed[computation] = list(_instructions(self._bodies.get(computation, "")))
        return self._parsed[computation]

    def all_instructions(self) -> Iterator[Instruction]:
        """The instructions of all computations."""
        for name in self._bodies:
            yield from self.instructions(name)

    def called(self, instruction: Instruction, attribute: str) -> str:
        """Name of the computation in an attribute such as "body"; "" without it."""
        match = re.search(rf"\b{attribute}=(%[^,\s]+)", instruction.attributes)
        return match[1] if match else ""


def _instructions(body: str) -> Iterator[Instruction]:
    for name, shape, opcode, operands, attributes in _INSTRUCTION.findall(body):
        names = tuple(re.findall(r"%[\w.-]+", operands))
        yield Instruction(name, array_shapes(shape), opcode, names, attributes)


@functools.lru_cache(maxsize=100_000)
def array_shapes(text: str) -> tuple[ArrayShape, ...]:
    """The arrays of a type such as "(f32[3]{0:T(128)}, bf16[8,128]{1,0})"."""
    return tuple(_array(*fields) for fields in _ARRAY.findall(text))


def _array(dtype: str, dims: str, order: str, layout: str) -> ArrayShape:
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    padded = _padded_sizes(sizes, order, layout)
    return ArrayShape(dtype, sizes, BYTES[dtype] * math.prod(padded), "S(" not in layout)


def _padded_sizes(sizes: tuple[int, ...], order: str, layout: str) -> list[int]:
    """Sizes from the slowest to the fastest axis, rounded up to the first tile."""
    axes = [int(axis) for axis in order.split(",") if axis]
    padded = [sizes[axis] for axis in reversed(axes)] if axes else list(sizes)
    tile = re.search(r"T\(([\d,]+)\)", layout)
    tile_sizes = [int(size) for size in tile[1].split(",")] if tile else []
    for position, size in enumerate(reversed(tile_sizes), start=1):
        if position <= len(padded):
            padded[-position] = -(-padded[-position] // size) * size
    return padded
