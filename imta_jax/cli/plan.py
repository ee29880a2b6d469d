"""`--mode=plan`: prints and writes the plan of a run for chips that need not be attached."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imta_jax.config import RunConfig
from imta_jax.errors import InputError
from imta_jax.planning.plan import make_plan
from imta_jax.planning.report import plan_record, plan_text
from imta_jax.planning.sweep import sweep, sweep_record, sweep_text
from imta_jax.planning.topologies import Topology, parse_topology
from imta_jax.runtime.files import write_json
from imta_jax.runtime.paths import local_path
from imta_jax.studies import is_study
from imta_jax.training.phases import SAVED_EXECUTABLES

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The flags of `--mode=plan`.

    Attributes:
      topologies: names of topologies.
      workdir: folder of the run, or None.
      out: JSON file, or None for `WORKDIR/plan/NAME.json`.
      full: generate code.
      save: save the executables of the phases in `WORKDIR/compiled`.
      sweep: compare topologies and batches.
      images_per_chip: batches of the sweep.
      prices: "KIND=PRICE" of a chip-hour.
    """

    topologies: tuple[str, ...]
    workdir: str | None = None
    out: str | None = None
    full: bool = False
    save: bool = False
    sweep: bool = False
    images_per_chip: tuple[str, ...] = ()
    prices: tuple[str, ...] = ()


def plan(config: RunConfig | ConfigDict | Mapping[str, Any], options: PlanOptions) -> None:
    """Prints the plan of a run, and writes it to `--out` or `--workdir` if one is given.

    Args:
      config: the settings of the run.
      options: the flags.

    Raises:
      UserError: a flag or the config is invalid, or the compiler is not installed.
    """
    if is_study(config):
        raise InputError("this is the config of a study; --mode=plan needs the config of a run")
    parsed = RunConfig.from_mapping(config)
    topologies = _topologies(options)
    workdir = local_path("--workdir", options.workdir) if options.workdir else None
    if options.sweep:
        _sweep(parsed, topologies, options, workdir)
        return
    save = _executables(options, workdir, topologies)
    for topology in topologies:
        result = make_plan(parsed, topology, full=options.full, save=save, report=_log.info)
        print(plan_text(result))
        _write(plan_record(result), options, workdir, topology.name)


def _topologies(options: PlanOptions) -> list[Topology]:
    if not options.topologies:
        raise InputError("--mode=plan needs --topology, for example --topology=v5e:2x2")
    if len(options.topologies) > 1 and options.out and not options.sweep:
        raise InputError(f"--out={options.out} is one file; expected one --topology, or --sweep")
    return [parse_topology(name) for name in options.topologies]


def _executables(
    options: PlanOptions, workdir: Path | None, topologies: list[Topology]
) -> Path | None:
    """The folder for executables; None without `--save`."""
    if not options.save:
        return None
    if workdir is None or len(topologies) > 1:
        raise InputError("--save needs --workdir, the folder of the run, and one --topology")
    return workdir / SAVED_EXECUTABLES


def _sweep(
    config: RunConfig, topologies: list[Topology], options: PlanOptions, workdir: Path | None
) -> None:
    images = [_positive("--images_per_chip", text) for text in options.images_per_chip]
    prices = dict(_price(text) for text in options.prices)
    rows = sweep(config, topologies, images, prices, full=options.full, report=_log.info)
    print(sweep_text(rows))
    path = _write(sweep_record(rows), options, workdir, "sweep")
    if path is not None:
        from imta_jax.planning.figure import write_sweep_figure

        _log.info("figure: %s", write_sweep_figure(rows, path.with_suffix(".svg")))


def _positive(flag: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{flag} must be whole numbers above 0; found {text!r}")
    return int(text)


def _price(text: str) -> tuple[str, float]:
    kind, _, value = text.partition("=")
    try:
        price = float(value)
    except ValueError:
        price = -1.0
    if price < 0:
        raise InputError(
            f"--price must be like v5e=1.20, with a price per chip-hour; found {text!r}"
        )
    return kind, price


def _write(
    record: Mapping[str, Any], options: PlanOptions, workdir: Path | None, name: str
) -> Path | None:
    """Writes a record as JSON to `--out` or to the folder `plan` of `--workdir`, if given."""
    if options.out:
        path = local_path("--out", options.out)
    elif workdir is not None:
        path = workdir / "plan" / f"{Path(name).name.replace(':', '_')}.json"
    else:
        return None
    write_json(path, record)
    _log.info("plan: %s", path)
    return path
