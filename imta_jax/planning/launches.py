"""What the host launches in a step on a GPU: CUDA graphs and single operations.

XLA records sequences of kernels as command buffers, which are CUDA graphs, and launches each with
one call. Operations that it does not record, such as the convolutions of cuDNN, and sequences that
are too short, are launched one by one.
"""

import dataclasses
import re
from collections.abc import Iterable

# "    000: kCommandBuffer [prev=113 (1)  | next=120 (1)  ]", "  body:"
_LINE = re.compile(r"^( *)(?:\d+: k(\w+)|(body|condition):)", re.MULTILINE)
_GRAPH, _LOOP = "CommandBuffer", "While"


@dataclasses.dataclass(frozen=True)
class Launches:
    """Numbers of a step.

    Attributes:
      graphs: CUDA graphs.
      in_graphs: operations in them.
      single: operations that are launched one by one.
    """

    graphs: int
    in_graphs: int
    single: int


@dataclasses.dataclass
class _Node:
    """An operation and those within it."""

    kind: str
    children: list["_Node"] = dataclasses.field(default_factory=list)


def launches_of(text: str, *, steps: int) -> Launches | None:
    """Counts the launches of a step.

    Args:
      text: XLA's thunk sequence after its passes; "" if there is none.
      steps: training steps in one call; above 1, the sequence has a loop over them.
    """
    if not text:
        return None
    operations = _tree(text)
    if steps > 1:
        loops = [node for node in operations if node.kind == _LOOP]
        bodies = [part for loop in loops for part in loop.children if part.kind == "body"]
        operations = max((body.children for body in bodies), key=len, default=[])
    graphs = [node for node in operations if node.kind == _GRAPH]
    single = _leaves(node for node in operations if node.kind != _GRAPH)
    return Launches(len(graphs), _leaves(graphs), single)


def _tree(text: str) -> list[_Node]:
    """The operations at the top; those within others are indented."""
    top = _Node("")
    path = [(-1, top)]
    for spaces, kind, part in _LINE.findall(text):
        indent = len(spaces)
        while path[-1][1].kind != _LOOP if part else path[-1][0] >= indent:
            path.pop()
        if part:  # The indentation of "condition:" differs from that of "body:".
            indent = path[-1][0] + 1
        node = _Node(kind or part)
        path[-1][1].children.append(node)
        path.append((indent, node))
    return top.children


def _leaves(nodes: Iterable[_Node]) -> int:
    """Number of operations that have no others within them."""
    return sum(_leaves(node.children) if node.children else 1 for node in nodes)
