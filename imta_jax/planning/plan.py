"""The plan of a run: memory and time of its programs on the chips of a topology, and its hours."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imta_jax.config import RunConfig
from imta_jax.data.pipeline.on_device import stored_bytes
from imta_jax.errors import InputError
from imta_jax.planning.compilation import Compiled, Request, compile_program
from imta_jax.planning.data_description import DataDescription, describe_data
from imta_jax.planning.devices import check_compiler
from imta_jax.planning.estimates import (
    BatchChoice,
    Seconds,
    StepEstimate,
    batch_choices,
    best_batch,
    estimate_step,
)
from imta_jax.planning.profile import Profile, profile
from imta_jax.planning.programs import program_names
from imta_jax.planning.topologies import Topology
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.lane_padding import LANES
from imta_jax.training.batch_statistics import batch_parts
from imta_jax.training.checks import check_field_values
from imta_jax.training.setup import phase_settings

_HOUR = 3600.0
_MAX_PROCESSES = 3  # The programs of a run; a fast compilation takes 1 to 2 GB.


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A compiled program and its estimates.

    Attributes:
      compiled: what the compiler reports.
      fits: whether it fits in the memory of a chip.
      profile: its work; None if it does not fit.
      estimate: its times; None if it does not fit.
      choices: other batches per chip, estimated.
      best: the best of them; None if none fits or is known.
    """

    compiled: Compiled
    fits: bool
    profile: Profile | None
    estimate: StepEstimate | None
    choices: list[BatchChoice]
    best: BatchChoice | None

    @property
    def name(self) -> str:
        """The program's name."""
        return self.compiled.info.name

    @property
    def images_per_second(self) -> Seconds | None:
        """Throughput of all chips; `low` is the pessimistic value."""
        if self.estimate is None:
            return None
        size, step = self.compiled.info.batch_size, self.estimate.step
        return Seconds(size / step.high, size / step.expected, size / step.low)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
      config: config of the run.
      data: sizes of its data.
      topology: the chips.
      full: whether code was generated.
      on_device_data: whether training images are stored on the chips.
      programs: programs in the order of the run.
      hours: hours by step of the run and "total"; empty if a program does not fit.
    """

    config: RunConfig
    data: DataDescription
    topology: Topology
    full: bool
    on_device_data: bool
    programs: list[PlannedProgram]
    hours: dict[str, Seconds]

    @property
    def fits(self) -> bool:
        """Whether all programs fit."""
        return all(program.fits for program in self.programs)


def make_plan(
    config: RunConfig,
    topology: Topology,
    *,
    full: bool = False,
    save: Path | None = None,
    programs: list[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles the programs of a run for a topology and estimates memory and time.

    Args:
      config: the run's config.
      topology: the chips.
      full: generate code. Takes minutes and gives the TPU compiler's cycles.
      save: folder for the executables of the phases, with `full`.
      programs: names of the programs to compile; None compiles all.
      report: called with a line when a program is compiled.

    Raises:
      InputError: the config is invalid, or the chips do not divide a batch.
      MissingPackageError: the compiler is not installed.
      UserError: the data must be read and cannot be.
    """
    check_field_values(config)
    check_batches(config, topology)
    check_compiler(topology)
    data = describe_data(config.data)
    on_device = stores_data_on_device(config, data, topology)

    def compile_one(name: str) -> Compiled:
        saved = save / name if save and name != "evaluation" else None
        compiled = compile_program(
            Request(config, data, topology, name, on_device, full or bool(save), saved)
        )
        seconds = compiled.trace_seconds + compiled.compile_seconds
        report(f"{name}: compiled for {topology.name} in {seconds:.0f} s")
        return compiled

    names = programs or program_names(config)
    # A full compilation takes up to 10 GB of memory.
    workers = 1 if full or save else min(usable_cores(), _MAX_PROCESSES)
    with ThreadPoolExecutor(workers) as pool:
        compiled = list(pool.map(compile_one, names))
    planned = [plan_program(program, topology) for program in compiled]
    hours = schedule_hours(config, data, planned)
    return Plan(config, data, topology, full or bool(save), on_device, planned, hours)


def check_batches(config: RunConfig, topology: Topology) -> None:
    """Checks that the chips divide all batches.

    Raises:
      InputError: they do not; the message names every such field, and values that work.
    """
    wrong = []
    for name in program_names(config):
        if name == "evaluation":
            size, multiple = config.evaluation.batch_size, topology.chips
        else:
            settings = phase_settings(config, name)
            size, multiple = settings.batch_size, topology.chips * batch_parts(settings)
        if size % multiple:
            wrong.append((f"config.{name}.batch_size", size, multiple))
    if wrong:
        sizes = ", ".join(f"{field}={size}" for field, size, _ in wrong)
        nearest = " ".join(f"--{field}={-(-size // n) * n}" for field, size, n in wrong)
        full = " ".join(f"--{field}={LANES * topology.chips}" for field, *_ in wrong)
        raise InputError(
            f"{sizes} cannot be divided by the {topology.chips} chips of {topology.name}; the next"
            f" sizes that can: {nearest}; with {LANES} images per chip: {full}"
        )


def stores_data_on_device(config: RunConfig, data: DataDescription, topology: Topology) -> bool:
    """Whether training images are stored on the chips, as `training_pipeline` decides."""
    size = stored_bytes(data.examples["train"], data.info.image_shape)
    limit = config.data.device_memory_share * topology.chip.memory_bytes
    pipeline = config.data.pipeline
    return data.are_arrays and (pipeline == "device" or (pipeline == "auto" and size <= limit))


def plan_program(compiled: Compiled, topology: Topology) -> PlannedProgram:
    """Estimates of a compiled program."""
    needed, info = compiled.memory_bytes, compiled.info
    fits = compiled.fits and (needed is None or needed <= topology.chip.memory_bytes)
    if not compiled.text:
        return PlannedProgram(compiled, False, None, None, [], None)
    work = profile(compiled.text, steps=info.steps, images_per_chip=info.images_per_chip)
    choices = batch_choices(work, info, topology, needed or 0)
    estimate = estimate_step(work, info, topology)
    best = best_batch(choices, topology.chip)
    return PlannedProgram(compiled, fits, work, estimate, choices, best)


def schedule_hours(
    config: RunConfig, data: DataDescription, programs: list[PlannedProgram]
) -> dict[str, Seconds]:
    """Hours of the run on the device: training, validation after each epoch, evaluation.

    The time of the host's input pipeline, checkpoints and start is not included.
    """
    steps = {
        program.name: program.estimate.step
        for program in programs
        if program.estimate and program.fits
    }
    if "evaluation" not in steps or len(steps) < len(programs):
        return {}
    size, hours = config.evaluation.batch_size, {}
    evaluation = steps.pop("evaluation").times(1 / _HOUR)
    validation = evaluation.times(-(-data.examples["validation"] // size))
    for name, step in steps.items():
        settings = phase_settings(config, name)
        per_epoch = data.examples["train"] // settings.batch_size
        epoch = step.times(per_epoch / _HOUR).plus(validation)
        hours[name] = epoch.times(settings.total_epochs)
    images = data.examples["validation"] + data.examples["test"]
    hours["evaluation"] = evaluation.times(-(-images // size))
    total = Seconds(0, 0, 0)
    for phase_hours in hours.values():
        total = total.plus(phase_hours)
    return {**hours, "total": total}


def advice(program: PlannedProgram, config: RunConfig, memory_limit: float) -> list[str]:
    """Fields to change for a program that does not fit, the ones that help most first."""
    info, name = program.compiled.info, program.name
    if name == "evaluation":
        return [f"--config.evaluation.batch_size={max(info.batch_size // 2, info.chips)}"]
    fitting = [
        choice.images
        for choice in program.choices
        if choice.images < info.images_per_chip and choice.memory_bytes <= memory_limit
    ]
    smaller = max(fitting, default=max(info.images_per_chip // 2, 1))
    settings = phase_settings(config, name)
    flags = [
        f"--config.{name}.batch_size={smaller * info.chips}",
        f"--config.{name}.accumulate_parts={2 * settings.accumulate_parts}",
    ]
    if settings.compute_dtype == "float32":
        flags.append(f"--config.{name}.compute_dtype=bfloat16")
    phase_one = config.phase_one
    if name == "phase_one" and not (phase_one.rematerialize or phase_one.rematerialize_layers):
        flags.append("--config.phase_one.rematerialize_layers=True")
        flags.append("--config.phase_one.rematerialize=True")
    if info.image_bytes:
        flags.append("--config.data.pipeline=numpy")
    return flags
