"""A comparison of topologies and batches per chip: time, throughput and price of the whole run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from imta_jax.config import RunConfig
from imta_jax.planning.estimates import Seconds
from imta_jax.planning.plan import Plan, make_plan
from imta_jax.planning.topologies import Topology
from imta_jax.runtime.environment import package_versions


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One topology with one batch per chip.

    Attributes:
      topology: name of the topology.
      kind: kind of its chips.
      chips: number of chips.
      images_per_chip: images per chip in each program.
      fits: whether all programs fit.
      memory_bytes: memory on one chip, the largest of the programs; None if unknown.
      step: time of a phase-I step, in seconds; None if it does not fit.
      images_per_second: throughput of phase I on all chips; None if it does not fit.
      message_share: fraction of the step in collectives between chips.
      hours: time of the whole schedule on the chips; None if it does not fit.
      price: price of these hours; None without a price of the chip.
    """

    topology: str
    kind: str
    chips: int
    images_per_chip: int
    fits: bool
    memory_bytes: float | None
    step: Seconds | None = None
    images_per_second: float | None = None
    message_share: float | None = None
    hours: Seconds | None = None
    price: Seconds | None = None


def sweep(
    config: RunConfig,
    topologies: Sequence[Topology],
    images_per_chip: Sequence[int],
    prices: Mapping[str, float],
    *,
    full: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[SweepRow]:
    """Plans a run for every topology and batch.

    Learning rate and epochs stay those of the config, whatever the batch.

    Args:
      config: the run's config; its batch sizes are replaced.
      topologies: the chips.
      images_per_chip: images per chip of every program.
      prices: price of a chip-hour by kind of chip.
      full: see `make_plan`.
      report: called with a line when a program is compiled.
    """
    rows = []
    for topology in topologies:
        for images in images_per_chip:
            sized = with_batch_size(config, images * topology.chips)
            plan = make_plan(sized, topology, full=full, report=report)
            rows.append(_row(plan, images, prices))
    return rows


def with_batch_size(config: RunConfig, size: int) -> RunConfig:
    """The config with one batch size in both phases and in the evaluation."""
    parts = {
        name: dataclasses.replace(getattr(config, name), batch_size=size)
        for name in ("phase_one", "phase_two", "evaluation")
    }
    return dataclasses.replace(config, **parts)


def _row(plan: Plan, images: int, prices: Mapping[str, float]) -> SweepRow:
    topology, first = plan.topology, plan.programs[0]
    needed = [program.compiled.memory_bytes or 0 for program in plan.programs]
    row = SweepRow(
        topology=topology.name,
        kind=topology.chip.name,
        chips=topology.chips,
        images_per_chip=images,
        fits=plan.fits,
        memory_bytes=max(needed) or None,
    )
    if not plan.fits or first.estimate is None or first.images_per_second is None:
        return row
    step, hours = first.estimate.step, plan.hours["total"]
    price = prices.get(topology.chip.name)
    return dataclasses.replace(
        row,
        step=step,
        images_per_second=first.images_per_second.expected,
        message_share=first.estimate.messages.expected / step.expected,
        hours=hours,
        price=hours.times(price * topology.chips) if price is not None else None,
    )


def sweep_text(rows: Sequence[SweepRow]) -> str:
    """The rows as a table."""
    has_prices = any(row.price for row in rows)
    headers = ["topology", "chips", "images/chip", "fits", "GB/chip", "phase-I step, ms"]
    headers += ["images/s", "collectives", "hours", *(["price"] if has_prices else [])]
    cells = [_cells(row)[: len(headers)] for row in rows]
    table = tabulate(cells, headers=headers, tablefmt="simple", disable_numparse=True)
    return (
        f"{table}\n\nnote: estimates of the time on the chips, without input; nothing was executed,"
        " and no estimate was compared with a device. Epochs and learning rate do not change with"
        " the batch."
    )


def _cells(row: SweepRow) -> list[str]:
    memory = "?" if row.memory_bytes is None else f"{row.memory_bytes / 1e9:.2f}"
    start = [row.topology, str(row.chips), str(row.images_per_chip)]
    if row.step is None or row.hours is None:
        return [*start, "NO", memory, "-", "-", "-", "-", "-"]
    return [
        *start,
        "yes",
        memory,
        _range(row.step.times(1e3)),
        f"{row.images_per_second:,.0f}",
        f"{row.message_share:.0%}",
        _range(row.hours),
        _range(row.price) if row.price else "-",
    ]


def _range(value: Seconds) -> str:
    return f"{value.expected:.3g} ({value.low:.3g} to {value.high:.3g})"


def sweep_record(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """The rows as JSON values."""
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "notes": ["estimates of programs that were compiled and not executed"],
        "versions": package_versions(),
    }
