"""Time of each stage of a training step, compared with two lower bounds (a roofline).

Every stage with its exit is compiled and timed alone, as training computes it: forward and backward
in phase I, forward in inference form in phase II. The lower bounds are the time of as many
multiply-adds in a large matrix product, and the time to read and write the arrays of the
convolutions. A full training step is timed as well: it also has the optimizer, the loss and the
checks.

    python benchmarks/stage_floors.py --out=benchmarks/results/stage_floors.json
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import jax_steps, measurement, result_file
from benchmarks.cases import SEED, Case
from imta_jax.distributed import is_single_cpu
from imta_jax.models import MultiExitClassifier
from imta_jax.models.optimize import optimized_form
from imta_jax.nn.convolution import convolve
from imta_jax.nn.cpu.channels_first import convolve_channels_first
from imta_jax.nn.cpu.layout import Layout
from imta_jax.runtime.huge_pages import restart_with_huge_pages
from imta_jax.training import setup

FULL = {"networks": ("cifar_5_exits", "cifar_7_exits"), "batch_size": 64, "rounds": 15}
QUICK = {"networks": ("cifar_5_exits",), "batch_size": 64, "rounds": 3}
KINDS = ("phase_one", "phase_two")
# Names of the jitted functions that convolve.
CONVOLUTIONS = (convolve.__name__, convolve_channels_first.__name__)
# Size and number of the matrix products, and size of the array, that measure the device's rates.
MATRIX, PRODUCTS, ARRAY = 2048, 16, 2**26
NOTES = {
    "ms": "of one stage and exit, compiled alone: its inputs and outputs go through memory",
    "macs": "multiply-adds of convolutions and linear layers, forward",
    "floors": "phase I: three times the multiply-adds; convolutions read their input three times"
    " and write or read the size of their output twice. Phase II: once each",
    "whole": "one step of the phase, with loss, checks and optimizer",
}


class Stage:
    """One stage with its exit, as a phase computes it; stage 0 includes the stem.

    Args:
      classifier: the network, in the phase's mode.
      i: index of the stage, from 0.
      state: input of the stage; the images for stage 0.
      layout: memory layout of the feature maps between stages.
    """

    def __init__(self, classifier: MultiExitClassifier, i: int, state: Any, layout: Layout):
        def is_own(path: tuple[Any, ...], value: Any) -> bool:
            in_stage = path[0] == "backbone" and (path[2] == i or (i == 0 and path[1] == "first"))
            return in_stage and isinstance(value, nnx.Param)

        self.i, self.state, self.layout = i, state, layout
        self.graphdef, self.params, self.rest = nnx.split(classifier, is_own, ...)

    def forward(self, params: nnx.State, rest: nnx.State, state: Any) -> tuple[Any, jax.Array]:
        """(State after the stage, features of its exit)."""
        classifier = nnx.merge(self.graphdef, params, rest, copy=True)
        classifier = optimized_form(classifier, layout=self.layout, fold_batch_norm=True)
        state = state if self.i else classifier.stem(state)
        state = classifier.backbone.stage(self.i, state)
        return state, classifier.backbone.exit_features(self.i, state)

    def both(self, params: nnx.State, rest: nnx.State, state: Any, gradient: Any) -> Any:
        """Forward and backward: gradients of the parameters and, after stage 0, of the input."""
        if self.i == 0:
            run = jax.vjp(lambda params: self.forward(params, rest, state), params)
        else:
            run = jax.vjp(lambda params, x: self.forward(params, rest, x), params, state)
        return run[1](gradient)

    def counts(self) -> tuple[int, int, int]:
        """Multiply-adds, bytes read and bytes written by the convolutions of a forward pass."""
        jaxpr = jax.make_jaxpr(self.forward)(self.params, self.rest, self.state).jaxpr
        counts_by_convolution = [_count(eqn) for eqn in _convolutions(jaxpr)]
        return tuple(int(total) for total in np.sum(counts_by_convolution, axis=0))


def _convolutions(jaxpr: Any) -> Iterator[Any]:
    """All convolutions in a jaxpr, including nested ones."""
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") in CONVOLUTIONS:
            yield eqn
            continue
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _convolutions(inner)


def _count(eqn: Any) -> tuple[int, int, int]:
    read, kernel = (variable.aval for variable in eqn.invars)
    written = eqn.outvars[0].aval
    macs = written.size * (kernel.size // kernel.shape[-1])
    return macs, read.size * read.dtype.itemsize, written.size * written.dtype.itemsize


def least_seconds(run: Callable[[], Any], rounds: int) -> float:
    """The least time over the rounds, after one round for compilation."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def rates(rounds: int) -> dict[str, float]:
    """Multiply-adds and bytes per second of the device, for large float32 arrays."""
    a = jnp.full((MATRIX, MATRIX), 1 / MATRIX)
    # Several products per program: on an accelerator one takes as long as its dispatch.
    products = jax.jit(lambda a: jax.lax.fori_loop(0, PRODUCTS, lambda _, b: a @ b, a))
    x = [jnp.ones(ARRAY)]
    scaled = jax.jit(lambda x: x * 1.0001, donate_argnums=0)  # in place: no new memory

    def move() -> jax.Array:
        x[0] = scaled(x[0])
        return x[0]

    return {
        "macs": PRODUCTS * MATRIX**3 / least_seconds(lambda: products(a), rounds),
        "bytes": 2 * x[0].nbytes / least_seconds(move, rounds),
    }


def network_rows(case: Case, rounds: int, speeds: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per phase and stage, and one for the full step of each phase."""
    steps, rows = jax_steps.JaxSteps(case, on_device=False), []
    layout = Layout.CHWN if is_single_cpu(steps.mesh) else Layout.NHWC
    for kind in KINDS:
        classifier = setup.new_phase_one(steps.config, case.dataset_info)
        if kind == "phase_two":
            classifier = setup.new_phase_two(steps.config, classifier)
        getattr(setup, f"{kind}_objective")(steps.config).set_mode(classifier)
        shape = (case.batch_size, *case.dataset_info.image_shape)
        state: Any = jax.random.normal(jax.random.key(SEED), shape)
        header = {"part": "stages", "kind": kind, "network": case.network}
        stages = []
        for i in range(classifier.num_exits):
            stage = Stage(classifier, i, state, layout)
            seconds, state = _time_stage(stage, kind, rounds)
            floors = _against_floors(stage, kind, seconds, speeds)
            stages.append({**header, "stage": i + 1, **floors})
        step_seconds = least_seconds(lambda kind=kind: getattr(steps, kind)(1), rounds)
        sums = {name: sum(row[name] for row in stages) for name in ("ms", "macs_ms", "bytes_ms")}
        rows += [measurement.rounded(row) for row in stages]
        rows.append(
            measurement.rounded({**header, "stage": "all", **sums, "whole_ms": 1e3 * step_seconds})
        )
    return rows


def _time_stage(stage: Stage, kind: str, rounds: int) -> tuple[float, Any]:
    """(Seconds, input of the next stage)."""
    arguments = (stage.params, stage.rest, stage.state)
    forward = jax.jit(stage.forward)
    result = forward(*arguments)
    if kind == "phase_two":
        return least_seconds(lambda: forward(*arguments), rounds), result[0]
    gradient, both = jax.tree.map(jnp.ones_like, result), jax.jit(stage.both)
    return least_seconds(lambda: both(*arguments, gradient), rounds), result[0]


def _against_floors(
    stage: Stage, kind: str, seconds: float, speeds: Mapping[str, float]
) -> dict[str, Any]:
    macs, read, written = stage.counts()
    times = (3, 3, 2) if kind == "phase_one" else (1, 1, 1)
    moved = times[1] * read + times[2] * written
    return {
        "ms": 1e3 * seconds,
        "macs": macs,
        "macs_ms": 1e3 * times[0] * macs / speeds["macs"],
        "bytes_ms": 1e3 * moved / speeds["bytes"],
    }


def run(size: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and summary."""
    speeds = rates(size["rounds"])
    rows = [measurement.rounded({"part": "rates", "batch_size": size["batch_size"], **speeds})]
    for network in size["networks"]:
        rows += network_rows(Case(network, size["batch_size"]), size["rounds"], speeds)
    summary = {
        f"{row['network']}, {row['kind']}, over the higher floor": float(
            f"{row['whole_ms'] / max(row['macs_ms'], row['bytes_ms']):.3g}"
        )
        for row in rows
        if row.get("stage") == "all"
    }
    return {"seeds": [SEED], "notes": NOTES, "targets": {}, "rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    arguments = result_file.argument_parser(__doc__).parse_args()
    result = run(QUICK if arguments.quick else FULL)
    result_file.write_result(arguments.out, (jax, flax, np), result)


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
