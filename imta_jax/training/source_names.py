"""Names of arrays in files of other origin: PyTorch's names and layout, and other prefixes."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The last part of a name in Flax, and in PyTorch. `bias` is the same in both.
_PYTORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_MAX_PREFIXES = 30
_MAX_PREFIX_PARTS = 4

Shape = tuple[int, ...]


def pytorch_name(name: str) -> str | None:
    """The name that PyTorch has for an array of Flax; None if it has no other one."""
    parent, dot, last = name.rpartition(".")
    return f"{parent}{dot}{_PYTORCH_NAMES[last]}" if last in _PYTORCH_NAMES else None


def transposes(name: str) -> bool:
    """Whether PyTorch has the axes of an array in another order: linear layers, convolutions."""
    return name.rpartition(".")[2] == "kernel"


def kernel_axes(rank: int) -> Shape:
    """The transposition of a PyTorch weight [O, I, *spatial] to a kernel [*spatial, I, O]."""
    return (*range(2, rank), *range(min(rank, 2))[::-1])


def suggested_map(
    network: Mapping[str, Any], sources: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> str:
    """The `init_from_map` that changes one prefix and loads most arrays, as Python code.

    Args:
      network: arrays, which may be abstract, by name.
      sources: arrays by name, after `pairs` were applied.
      pairs: the value of `init_from_map`, which the suggestion extends.

    Returns:
      "" if no change of a prefix loads more arrays than no change.
    """
    expected = _expected_shapes(network)
    shapes = {name: tuple(x.shape) for name, x in sources.items()}

    def matches(prefixes: tuple[str, str]) -> int:
        old, new = prefixes
        return sum(
            shape in expected.get(new + name[len(old) :], ())
            for name, shape in shapes.items()
            if name.startswith(old)
        )

    unchanged = ("", "")
    candidates = [(old, new) for old in _prefixes(sources) for new in _prefixes(network)]
    best = max([unchanged, *candidates], key=matches)
    if matches(best) <= matches(unchanged):
        return ""
    expression = "^" + "".join(f"[{c}]" if c in ".+*?$|" else c for c in best[0])
    return _as_code([*pairs, (expression, best[1])])


def _expected_shapes(network: Mapping[str, Any]) -> dict[str, set[Shape]]:
    """The shapes that a source may have by each name."""
    expected: dict[str, set[Shape]] = {}
    for name, x in network.items():
        expected.setdefault(name, set()).add(tuple(x.shape))
        if other := pytorch_name(name):
            shape = _pytorch_shape(x.shape) if transposes(name) else tuple(x.shape)
            expected.setdefault(other, set()).add(shape)
    return expected


def _pytorch_shape(kernel: Shape) -> Shape:
    """The shape of a PyTorch weight for that of a kernel: the inverse of `kernel_axes`."""
    return (*kernel[-2:][::-1], *kernel[:-2])


def _prefixes(names: Iterable[str]) -> list[str]:
    """The most frequent prefixes of several parts, the shortest first among equal ones."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1]
        for length in range(min(len(parts), _MAX_PREFIX_PARTS) + 1):
            counts["".join(f"{part}." for part in parts[:length])] += 1
    return sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))[:_MAX_PREFIXES]


def _as_code(pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs as a Python literal with double quotes, for use between a shell's single quotes."""
    return "(" + "".join(f"({json.dumps(a)},{json.dumps(b)})," for a, b in pairs) + ")"
