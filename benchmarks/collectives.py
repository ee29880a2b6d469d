"""Bytes that a compiled program sends between devices, parsed from its text."""

import re
from collections import Counter

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_OPERATIONS = (
    "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
)
# "%name = f32[3,4]{1,0} all-reduce(...)", a tuple of shapes, or the start of an asynchronous one.
_LINE = re.compile(rf"= (\(.*?\)|\S+) ({_OPERATIONS})(-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


def collective_bytes(compiled_text: str) -> Counter[str]:
    """Bytes of the results of collective operations, by kind.

    Args:
      compiled_text: `jax.jit(...).lower(...).compile().as_text()`. Operations in a loop count once.

    Returns:
      Kind ("all-reduce", "all-gather", ...) -> bytes on one device.
    """
    bytes_by_kind: Counter[str] = Counter()
    for shapes, kind, started in _LINE.findall(compiled_text):
        total = sum(_bytes_of(dtype, dims) for dtype, dims in _SHAPE.findall(shapes))
        # An asynchronous all-gather lists its operands as well as its results.
        bytes_by_kind[kind] += total // 2 if started and kind != "all-reduce" else total
    return bytes_by_kind


def _bytes_of(dtype: str, dims: str) -> int:
    size = _BYTES[dtype]
    for length in filter(None, dims.split(",")):
        size *= int(length)
    return size
