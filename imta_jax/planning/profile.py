"""A summary of a compiled program: work, layouts and collectives, per training step."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator

from imta_jax.planning.hlo_text import Instruction, Module

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_KERNELS = ("fusion", "convolution", "reduce", "sort", "gather", "scatter", "reduce-window")
_MOVES = ("copy", "custom-call")
_LIBRARY = re.compile(r'custom_call_target="__(?:cudnn|cublas|triton)')
_COPIES_ENDED = ("copy-done", "async-done")
# Calls that run no code: they give an array another type, or reserve memory.
_NO_WORK = ("ConcatBitcast", "AllocateBuffer", "GatherScatterIndicesBitpacked")
_HOST = ("infeed", "outfeed", "send", "recv")
_HOST_TARGETS = re.compile(r'custom_call_target="[^"]*(?:callback|Host)[^"]*"', re.IGNORECASE)
# Part of a step -> a pattern of the traced functions' names; the first match counts.
_PARTS = {
    "data": re.compile(r"take_along_axis|on_device_batch"),
    "batch normalization": re.compile(r"batch_norm"),
    "convolutions": re.compile(r"conv"),
    "other": re.compile(""),
}


@dataclasses.dataclass
class Work:
    """Sums over the kernels of a program.

    Attributes:
      kernels: number of kernels that run.
      bytes: bytes of their results without padding.
      padded_bytes: bytes of their results with padding.
      touched_bytes: bytes of operands and results of all kernels, with padding, in any memory.
      batch_bytes: the part of `touched_bytes` in arrays with one entry per image of the chip.
      memory_bytes: read from or written to the device's main memory.
      transposes: kernels that XLA names after a transpose; it has other names for them on TPUs.
      transpose_bytes: bytes of their results.
      cycles: the compiler's estimate by part of the step; empty without one.
      touched_by_part: `touched_bytes` by part of the step.
      memory_by_part: `memory_bytes` by part of the step.
      kernels_by_part: `kernels` by part of the step.
      collectives: number of collectives by kind.
      collective_bytes: their bytes by kind.
    """

    kernels: float = 0
    bytes: float = 0
    padded_bytes: float = 0
    touched_bytes: float = 0
    batch_bytes: float = 0
    memory_bytes: float = 0
    transposes: float = 0
    transpose_bytes: float = 0
    cycles: Counter[str] = dataclasses.field(default_factory=Counter)
    touched_by_part: Counter[str] = dataclasses.field(default_factory=Counter)
    memory_by_part: Counter[str] = dataclasses.field(default_factory=Counter)
    kernels_by_part: Counter[str] = dataclasses.field(default_factory=Counter)
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)
    collective_bytes: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: "Work", times: float) -> None:
        """Adds `times` repetitions of `other`."""
        for field in dataclasses.fields(self):
            current, added = getattr(self, field.name), getattr(other, field.name)
            if isinstance(current, Counter):
                for key, value in added.items():
                    current[key] += value * times
            else:
                setattr(self, field.name, current + added * times)


@dataclasses.dataclass(frozen=True)
class Profile:
    """The work of a compiled program in one step.

    Attributes:
      step: the work of one step.
      dispatch: the work outside the loop over steps, once per call of the program.
      chain: length of the longest chain of collectives, in which each waits for the one before.
    """

    step: Work
    dispatch: Work
    chain: int

    @property
    def padding(self) -> float:
        """Bytes that layouts take, relative to the bytes of the arrays."""
        return self.step.padded_bytes / max(self.step.bytes, 1)


def profile(text: str, *, steps: int, images_per_chip: int) -> Profile:
    """Summarizes a program.

    Args:
      text: optimized HLO.
      steps: training steps in one call; above 1, the program has a loop over them.
      images_per_chip: images of a step on one chip.
    """
    module = Module(text)
    outer, chain = _work(module, module.entry, images_per_chip)
    loop = _step_loop(module) if steps > 1 else None
    if loop is None:
        return Profile(outer, Work(), chain)
    step, chain = _work(module, module.called(loop, "body"), images_per_chip)
    outer.add(step, -_trips(loop))
    return Profile(step, outer, chain)


def _step_loop(module: Module) -> Instruction | None:
    """The loop over steps: the one with the longest body in the entry computation."""
    loops = [
        instruction
        for instruction in module.instructions(module.entry)
        if instruction.opcode == "while"
    ]
    return max(
        loops,
        key=lambda instruction: len(module.instructions(module.called(instruction, "body"))),
        default=None,
    )


def _trips(loop: Instruction) -> int:
    match = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    return int(match[1]) if match else 1


def _work(module: Module, computation: str, images: int) -> tuple[Work, int]:
    """The work of a computation, and the length of its longest chain of collectives."""
    total, defined, depth = Work(), {}, {}
    for instruction in module.instructions(computation):
        before = max((depth.get(operand, 0) for operand in instruction.operands), default=0)
        operands = [defined[name] for name in instruction.operands if name in defined]
        executions = 0
        if instruction.opcode == "while":
            inner, chain = _work(module, module.called(instruction, "body"), images)
            total.add(inner, _trips(instruction))
            executions = chain * _trips(instruction)
        elif kind := collective_kind(instruction):
            total.collectives[kind] += 1
            total.collective_bytes[kind] += collective_result_bytes(instruction, kind)
            executions = 1
        else:
            _count_kernel(total, instruction, operands, images)
        defined[instruction.name], depth[instruction.name] = instruction, before + executions
    return total, max(depth.values(), default=0)


def collective_kind(instruction: Instruction) -> str:
    """The kind of collective that an instruction starts, or ""."""
    return next((kind for kind in COLLECTIVES if instruction.opcode in (kind, f"{kind}-start")), "")


def collective_result_bytes(instruction: Instruction, kind: str) -> int:
    """Bytes of a collective's result; the start of an asynchronous one lists operands too."""
    lists_operands = instruction.opcode.endswith("-start") and kind != "all-reduce"
    return instruction.bytes // 2 if lists_operands else instruction.bytes


def _count_kernel(
    total: Work, instruction: Instruction, operands: list[Instruction], images: int
) -> None:
    part = part_of(instruction)
    if instruction.opcode in _COPIES_ENDED:
        _count_traffic(total, part, instruction.padded_bytes)
    if instruction.opcode not in (*_KERNELS, *_MOVES) or any(
        n in instruction.attributes for n in _NO_WORK
    ):
        return
    shapes = [shape for each in (instruction, *operands) for shape in each.shapes]
    _count_traffic(total, part, sum(s.padded_bytes for s in shapes if s.in_device_memory))
    if (
        instruction.opcode in _MOVES
        and not instruction.cycles
        and not _LIBRARY.search(instruction.attributes)
    ):
        return
    touched = sum(shape.padded_bytes for shape in shapes)
    total.kernels += 1
    total.bytes += instruction.bytes
    total.padded_bytes += instruction.padded_bytes
    total.touched_bytes += touched
    total.batch_bytes += sum(s.padded_bytes for s in shapes if images in s.dims)
    total.kernels_by_part[part] += 1
    total.touched_by_part[part] += touched
    if "transpose" in instruction.name:
        total.transposes += 1
        total.transpose_bytes += instruction.bytes
    if instruction.cycles:
        total.cycles[part] += instruction.cycles


def _count_traffic(total: Work, part: str, size: int) -> None:
    total.memory_bytes += size
    total.memory_by_part[part] += size


def part_of(instruction: Instruction) -> str:
    """The part of a step that an instruction belongs to."""
    return next(part for part, pattern in _PARTS.items() if pattern.search(instruction.op_name))


def host_transfers(text: str) -> list[str]:
    """Names of instructions that exchange data with the host, such as callbacks."""
    return [
        instruction.name
        for instruction in Module(text).all_instructions()
        if instruction.opcode.removesuffix("-start") in _HOST
        or _HOST_TARGETS.search(instruction.attributes)
    ]


def arrays_of_type(text: str, dtype: str) -> list[str]:
    """Names of instructions whose result has a type such as "f64"."""
    return [
        instruction.name
        for instruction in Module(text).all_instructions()
        if any(shape.dtype == dtype for shape in instruction.shapes)
    ]


def gathered(text: str, minimum_bytes: int) -> Iterator[tuple[str, int]]:
    """(name, bytes) of all-gathers and all-to-alls of at least `minimum_bytes`."""
    for instruction in Module(text).all_instructions():
        if collective_kind(instruction) in ("all-gather", "all-to-all"):
            size = collective_result_bytes(instruction, "all-gather")
            if size >= minimum_bytes:
                yield instruction.name, size
