"""Measures and compiles an exported network on this machine, and adds the results to its folder."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imta_jax.errors import InputError
from imta_jax.inference.adaptive import AdaptiveClassifier
from imta_jax.inference.arguments import few_batch_sizes
from imta_jax.inference.export import folder as export_folder
from imta_jax.inference.export import golden
from imta_jax.inference.export.loader import ExportedClassifier, load_exported, platform_here
from imta_jax.inference.export.machine_files import write_compiled, write_profiles
from imta_jax.inference.stream.settings import WorkerSettings
from imta_jax.runtime.parallel_compilation import compiling_into

_FEW_SIZES_UP_TO = 32


def default_options() -> tuple[Mapping[str, Any], ...]:
    """Arguments of `AdaptiveClassifier` that programs are compiled for.

    The defaults, those of `python -m imta_jax.inference`, and those of examples/service.
    """
    return {}, few_batch_sizes(_FEW_SIZES_UP_TO), few_batch_sizes(_FEW_SIZES_UP_TO, num_workers=1)


def check_machine_files(
    platforms: Sequence[str], format: str, *, profile: bool, compiled: Sequence[float]
) -> None:
    """Checks that an export can have stage times and compiled programs.

    Raises:
      ValueError: it has another format, or cannot run on this machine.
    """
    if not profile and not compiled:
        return
    if format != "stablehlo":
        raise InputError(
            f"format is {format} with profile or compiled; expected stablehlo, whose programs this "
            "package runs"
        )
    if platform_here() not in platforms:
        raise InputError(
            f"platforms is {', '.join(platforms)} with profile or compiled; expected "
            f"{platform_here()}, this machine, among them"
        )


def add_machine_files(
    folder: Path,
    budgets: Sequence[float],
    *,
    profile: bool = True,
    options: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Adds stage times and, for budgets, compiled programs to an exported folder.

    Args:
      folder: an export that is being written.
      budgets: budgets whose programs are compiled.
      profile: whether to add stage times if there are no budgets.
      options: arguments of `AdaptiveClassifier` that programs are compiled for. Stage times are
        measured with the first of them.

    Raises:
      ValueError: no thresholds fit a budget.
    """
    if not profile and not budgets:
        return
    options = default_options() if options is None else options
    export_folder.write_checksums(folder)
    with tempfile.TemporaryDirectory() as scratch, compiling_into(Path(scratch) / "cache"):
        exported = load_exported(folder, check_golden=False)
        for budget in budgets:
            exported.point_for(budget)  # raises before minutes of work
        arguments = {**options[0], "profile_dir": scratch}
        measured = AdaptiveClassifier(exported.network, exported.points[0].thresholds, **arguments)
        measured.measure()
        write_profiles(folder, measured.profiles)
        if not budgets:
            return
        export_folder.write_checksums(folder)
        exported = load_exported(folder, check_golden=False)  # with the profiles
        path, dtype = folder / export_folder.GOLDEN, exported.manifest["dtype"]
        golden.check_golden(path, exported.network, exported.transform, dtype)
        for budget in budgets:
            _compile(exported, budget, options)
        write_compiled(folder, Path(scratch) / "cache")


def _compile(
    exported: ExportedClassifier, budget: float, options: Sequence[Mapping[str, Any]]
) -> None:
    """Compiles what a classifier and its streams need at a budget."""
    for arguments in options:
        adaptive = exported.adaptive(budget, **arguments)
        adaptive.warm_up()
        WorkerSettings.full_network(adaptive)
        WorkerSettings.from_classifier(adaptive)
