"""A plan as text and as JSON values."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tabulate import tabulate

from imta_jax.config import RunConfig
from imta_jax.distributed import parameter_shards_hint
from imta_jax.planning.estimates import Seconds, seconds_by_part
from imta_jax.planning.plan import Plan, PlannedProgram, advice
from imta_jax.runtime.environment import package_versions
from imta_jax.runtime.lane_padding import padding_hint
from imta_jax.training.batch_statistics import batch_parts
from imta_jax.training.setup import phase_settings

_GB, _MB = 1e9, 1e6
# A plan reports steps that wait for collectives: the share of the step, and the chain's length.
_WAITING_SHARE, _LONG_CHAIN = 0.15, 10
_GPU_NOTE = "kernel times are assumed: memory bandwidth, and 2 us for each kernel"
# By whether the compilation was complete, and the platform.
_NOTES = {
    (True, "tpu"): "kernel times are the compiler's static cycles, without waiting for memory",
    (False, "tpu"): "kernel times are a fit to the compiler's cycles; --full gives the cycles",
    (True, "cuda"): _GPU_NOTE,
    (False, "cuda"): _GPU_NOTE,
}
_DISCLAIMER = "nothing was executed, and no estimate was compared with a device"


def plan_text(plan: Plan) -> str:
    """A plan as tables."""
    chip, topology = plan.topology.chip, plan.topology
    title = (
        f"{topology.name}: {topology.chips} x {chip.name},"
        f" {chip.memory_bytes / _GB:.1f} GB each; {plan.data.info.name},"
        f" {plan.data.examples['train']:,} training images"
        f" {'on each chip' if plan.on_device_data else 'from the host'}"
    )
    headers = ["", *(program.name for program in plan.programs)]
    cells = [[name, *(cell(program) for program in plan.programs)] for name, cell in _rows(plan)]
    table = tabulate(cells, headers=headers, tablefmt="simple", disable_numparse=True)
    lines = [title, "", table, "", *_hours(plan), *_warnings(plan)]
    note = _NOTES[plan.full, chip.platform]
    return "\n".join([*lines, f"note: {note}; {_DISCLAIMER}"])


def _rows(plan: Plan) -> list[tuple[str, Callable[[PlannedProgram], str]]]:
    """Names of the table's rows, and the cell of each for a program."""
    chips, memory = plan.topology.chips, plan.topology.chip.memory_bytes
    has_launches = any(program.compiled.launches for program in plan.programs)
    return [
        ("fits", lambda p: "yes" if p.fits else "NO"),
        ("memory per chip, GB", lambda p: _memory(p, memory)),
        ("images per step (per chip)", _batch),
        ("padding of layouts", lambda p: f"{p.profile.padding:.2f}x" if p.profile else "-"),
        ("kernels", lambda p: f"{p.profile.step.kernels:,.0f}" if p.profile else "-"),
        *([("launched by the host", _launches)] if has_launches else []),
        ("collectives", _kinds),
        ("collectives, MB", _collective_megabytes),
        ("longest chain", lambda p: str(p.profile.chain) if p.profile else "-"),
        ("matrix units' bound, ms", lambda p: _floor(p, "matrix_floor")),
        ("memory's bound, ms", lambda p: _floor(p, "memory_floor")),
        ("kernels, ms", lambda p: _time(p, lambda e: e.kernels)),
        ("collectives, ms", lambda p: _time(p, lambda e: e.messages)),
        ("step, ms", lambda p: _time(p, lambda e: e.step)),
        (f"images/s, {chips} chips", lambda p: _range(p.images_per_second, ",.0f")),
        ("best images per chip", _best),
        ("traced + compiled, s", _compile_seconds),
    ]


def _memory(program: PlannedProgram, limit: float) -> str:
    needed = program.compiled.memory_bytes
    if needed is None:
        return f"more than {limit / _GB:.1f}"
    return f"{needed / _GB:.2f} of {limit / _GB:.1f}"


def _batch(program: PlannedProgram) -> str:
    info = program.compiled.info
    return f"{info.batch_size:,} ({info.images_per_chip})"


def _launches(program: PlannedProgram) -> str:
    found = program.compiled.launches
    return f"{found.graphs} CUDA graphs, {found.single} operations" if found else "-"


def _kinds(program: PlannedProgram) -> str:
    if program.profile is None:
        return "-"
    counts = program.profile.step.collectives
    return ", ".join(f"{count:.0f} {kind}" for kind, count in counts.items()) or "none"


def _collective_megabytes(program: PlannedProgram) -> str:
    if program.profile is None:
        return "-"
    return f"{sum(program.profile.step.collective_bytes.values()) / _MB:.2f}"


def _floor(program: PlannedProgram, name: str) -> str:
    return f"{1e3 * getattr(program.estimate, name):.3g}" if program.estimate else "-"


def _time(program: PlannedProgram, part: Callable[[Any], Seconds]) -> str:
    return _range(part(program.estimate).times(1e3), ".3g") if program.estimate else "-"


def _range(value: Seconds | None, form: str) -> str:
    if value is None:
        return "-"
    if value.high == 0:
        return "0"
    return f"{value.expected:{form}} ({value.low:{form}} to {value.high:{form}})"


def _best(program: PlannedProgram) -> str:
    if program.best is None:
        return "-"
    return f"{program.best.images}, {program.best.images_per_second:,.0f}/s"


def _compile_seconds(program: PlannedProgram) -> str:
    compiled = program.compiled
    return f"{compiled.trace_seconds:.0f} + {compiled.compile_seconds:.0f}"


def _hours(plan: Plan) -> list[str]:
    if not plan.hours:
        return []
    parts = ", ".join(f"{name} {_duration(hours)}" for name, hours in plan.hours.items())
    return [f"time on the chips: {parts}; input, checkpoints and start are not included"]


def _duration(hours: Seconds) -> str:
    units = (("h", 1.0), ("min", 1 / 60), ("s", 1 / 3600))
    unit, size = next((u for u in units if hours.expected >= u[1]), units[-1])
    return f"{_range(hours.times(1 / size), '.3g')} {unit}"


def _warnings(plan: Plan) -> list[str]:
    """What to change: programs that do not fit, padded batches, steps that wait, few parameters."""
    lines, chip = [], plan.topology.chip
    for program in plan.programs:
        if not program.fits:
            fields = " or ".join(advice(program, plan.config, chip.memory_bytes))
            memory = _memory(program, chip.memory_bytes)
            lines.append(f"{program.name} does NOT fit ({memory} GB): set {fields}")
        if chip.platform == "tpu" and program.fits and (hint := _padding(program, plan.config)):
            lines.append(hint)
        if program.fits and (hint := _waiting(program, plan.config)):
            lines.append(hint)
    shards, trained = plan.config.mesh.parameter_shards, plan.programs[0].compiled.info
    if hint := parameter_shards_hint(shards, trained.gradient_bytes):
        lines.append(hint)
    return lines


def _padding(program: PlannedProgram, config: RunConfig) -> str | None:
    """What to change if the batch of a program is padded."""
    info, name = program.compiled.info, program.name
    parts = 1 if name == "evaluation" else batch_parts(phase_settings(config, name))
    return padding_hint(f"config.{name}.batch_size", info.batch_size, info.chips, parts)


def _waiting(program: PlannedProgram, config: RunConfig) -> str | None:
    """What to change if a step waits for the collectives of batch statistics."""
    if program.name == "evaluation" or program.estimate is None or program.profile is None:
        return None
    fraction = program.estimate.messages.expected / program.estimate.step.expected
    settings, chain = phase_settings(config, program.name), program.profile.chain
    if settings.batch_statistics != "global" or fraction < _WAITING_SHARE or chain < _LONG_CHAIN:
        return None
    return (
        f"{program.name}: a step waits {fraction:.0%} of its time for collectives, {chain} of"
        f" them one after the other; with --config.{program.name}.batch_statistics=per_device, or"
        " group, no statistics are sent in the forward and backward pass"
    )


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values: seconds and bytes per chip, and images per second of all chips."""
    return {
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "chip": dataclasses.asdict(plan.topology.chip),
        "data": plan.data.to_dict(),
        "on_device_data": plan.on_device_data,
        "full": plan.full,
        "fits": plan.fits,
        "programs": [_program_record(program, plan) for program in plan.programs],
        "hours": {name: dataclasses.asdict(hours) for name, hours in plan.hours.items()},
        "notes": [_NOTES[plan.full, plan.topology.chip.platform], _DISCLAIMER],
        "versions": package_versions(),
    }


def _program_record(program: PlannedProgram, plan: Plan) -> dict[str, Any]:
    compiled, chip = program.compiled, plan.topology.chip
    record: dict[str, Any] = {
        **dataclasses.asdict(compiled.info),
        "images_per_chip": compiled.info.images_per_chip,
        "fits": program.fits,
        "memory_bytes": compiled.memory_bytes,
        "memory_parts": compiled.parts,
        "trace_seconds": round(compiled.trace_seconds, 2),
        "compile_seconds": round(compiled.compile_seconds, 2),
        "cpu_seconds": round(compiled.cpu_seconds, 2),
        "launches": dataclasses.asdict(compiled.launches) if compiled.launches else None,
    }
    if not program.fits:
        record["advice"] = advice(program, plan.config, chip.memory_bytes)
    if program.profile is None or program.estimate is None:
        return record
    step, throughput = program.profile.step, program.images_per_second
    return record | {
        "padding": program.profile.padding,
        "kernels": step.kernels,
        "transposes": step.transposes,
        "transpose_bytes": step.transpose_bytes,
        "touched_bytes": step.touched_bytes,
        "memory_traffic_bytes": step.memory_bytes,
        "cycles": sum(step.cycles.values()) or None,
        "collectives": dict(step.collectives),
        "collective_bytes": dict(step.collective_bytes),
        "messages_in_a_row": program.profile.chain,
        "estimate": dataclasses.asdict(program.estimate),
        "kernel_seconds_by_part": seconds_by_part(step, chip),
        "dispatch_memory_bytes": program.profile.dispatch.memory_bytes,
        "images_per_second": dataclasses.asdict(throughput) if throughput else None,
        "batches": [dataclasses.asdict(choice) for choice in program.choices],
        "best_images_per_chip": program.best.images if program.best else None,
    }
