"""Searches for the Hydra-Res configuration that reproduces the costs in the paper's Table 1.

    python -m imta_jax.studies.hydra_search

The table has the parameters and multiply-adds of eight networks; their configuration is not
published. Candidates are HydraNets on a ResNet with 16, 32 and 64 channels and d blocks per group.
They differ in the groups of the stem, the stored and active branches, the gate, the shortcuts and
the combination of features. Costs are computed in closed form. `models/baselines/hydranet.py`
builds the best candidate; a test compares its traced costs with these.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from tabulate import tabulate

from imta_jax.studies.report import paper_numbers

# Parameters and multiply-adds ("Inference MADDs") of Table 1 (CIFAR-100), in millions, by d.
HYDRA_COSTS = {
    row.number: (row.params, row.madds)
    for row in paper_numbers.TABLE_ONE
    if row.model == paper_numbers.HYDRA
}
_WIDTHS, _IMAGE_CHANNELS, _SIDE, _CLASSES = (16, 32, 64), 3, 32, 100

# (parameters, multiply-adds).
Cost = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration of a Hydra-Res.

    Attributes:
      stem_groups: groups before the branches, of three.
      branches: number of stored branches.
      active: number of branches that run for an image.
      gate: "linear" on the pooled stem, or "branch", which has the structure of a branch.
      shortcut: "A" (without parameters) or "B" (1x1 convolution).
      combiner: "sum" of weighted features, "concatenate" (zeros for inactive branches), or
        "project" (sum after a square linear layer in every branch).
    """

    stem_groups: int
    branches: int
    active: int
    gate: str
    shortcut: str
    combiner: str


def cost(candidate: Candidate, d: int) -> Cost:
    """Stored parameters and executed multiply-adds of a candidate with d blocks per group."""
    stem = [_conv(_IMAGE_CHANNELS, _WIDTHS[0], 3, _SIDE**2)]
    split = candidate.stem_groups
    stem += [_group(candidate, number, d) for number in range(split)]
    width = _WIDTHS[-1]
    parts = [_group(candidate, number, d) for number in range(split, len(_WIDTHS))]
    if candidate.combiner == "project":
        parts.append(_linear(width, width))
    branch = _total(parts)
    if candidate.gate == "branch":
        stem += [branch, _linear(width, candidate.branches)]
    else:
        stem.append(_linear(_WIDTHS[split - 1], candidate.branches))
    if candidate.combiner == "concatenate":
        head = (
            candidate.branches * width * _CLASSES + _CLASSES,
            candidate.active * width * _CLASSES,
        )
    else:
        head = _linear(width, _CLASSES)
    params, macs = _total([*stem, head])
    return params + candidate.branches * branch[0], macs + candidate.active * branch[1]


def deviations(candidate: Candidate) -> dict[int, tuple[float, float]]:
    """Relative errors (percent) of parameters and multiply-adds against the table, by d."""
    errors = {}
    for d, printed in HYDRA_COSTS.items():
        costs = cost(candidate, d)
        errors[d] = tuple(
            100 * (computed / 1e6 / published - 1)
            for computed, published in zip(costs, printed, strict=True)
        )
    return errors


def search() -> list[tuple[float, Candidate]]:
    """Ranks all candidates by their largest deviation in percent.

    Candidates with equal deviations (to 0.01%) are ranked by the distance of the number of branches
    to 20, the number of superclasses of CIFAR-100.

    Returns:
      Pairs (largest deviation, candidate), the best first.
    """
    ranked = []
    for candidate in _candidates():
        worst = max(abs(value) for pair in deviations(candidate).values() for value in pair)
        ranked.append((worst, candidate))
    return sorted(ranked, key=lambda entry: (round(entry[0], 2), abs(entry[1].branches - 20)))


def _candidates() -> Iterator[Candidate]:
    """Yields all combinations, with numbers of branches that match the last row of the table."""
    d = max(HYDRA_COSTS)
    params, macs = (1e6 * value for value in HYDRA_COSTS[d])
    for stem_groups, gate, shortcut, combiner in itertools.product(
        (1, 2), ("linear", "branch"), "AB", ("sum", "concatenate", "project")
    ):
        style = (gate, shortcut, combiner)
        no_block, one_block = (cost(Candidate(stem_groups, n, n, *style), d) for n in (0, 1))
        stored, run = (
            (t - n) / (o - n) for t, n, o in zip((params, macs), no_block, one_block, strict=True)
        )
        for branches, active in itertools.product(_around(stored), _around(run)):
            if 1 <= active <= branches:
                yield Candidate(stem_groups, branches, active, *style)


def _around(value: float) -> tuple[int, int]:
    return math.floor(value), math.ceil(value)


def _group(candidate: Candidate, number: int, d: int) -> Cost:
    """Cost of group `number` (from 0); the first block of later groups halves the map."""
    width, pixels = _WIDTHS[number], (_SIDE // 2**number) ** 2
    inputs = _WIDTHS[number - 1] if number else width
    parts = [_conv(inputs, width, 3, pixels)]
    parts += [_conv(width, width, 3, pixels)] * (2 * d - 1)
    if number and candidate.shortcut == "B":
        parts.append(_conv(inputs, width, 1, pixels))
    return _total(parts)


def _conv(inputs: int, outputs: int, kernel: int, pixels: int) -> Cost:
    """Cost of a convolution with the scale and shift of its batch normalization."""
    weights = inputs * outputs * kernel**2
    return weights + 2 * outputs, weights * pixels


def _linear(inputs: int, outputs: int) -> Cost:
    return (inputs + 1) * outputs, inputs * outputs


def _total(costs: list[Cost]) -> Cost:
    params, macs = zip(*costs, strict=True)
    return sum(params), sum(macs)


def main() -> None:
    """Prints the best candidates, and all rows of the best one."""
    ranked = search()
    best = ranked[0][1]
    top = [{"largest error, %": worst} | dataclasses.asdict(c) for worst, c in ranked[:8]]
    print(tabulate(top, headers="keys", floatfmt=".2f"))
    table = []
    for d, (params, macs) in HYDRA_COSTS.items():
        ours, errors = cost(best, d), deviations(best)[d]
        table.append((d, params, ours[0] / 1e6, errors[0], macs, ours[1] / 1e6, errors[1]))
    columns = ("d", "params, M", "ours", "error, %", "multiply-adds, M", "ours", "error, %")
    print("\n" + tabulate(table, headers=columns, floatfmt=".2f"))


if __name__ == "__main__":
    main()
