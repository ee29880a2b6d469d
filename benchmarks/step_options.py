"""Measures what the fields of phase I that trade time for memory do to a step, on this device.

bfloat16, rematerialised stages, a batch in parts, and many steps in one dispatch: time per step, in
turns, and the memory that the compiled step takes besides its arguments and results.

    python benchmarks/step_options.py --out=benchmarks/results/step_options.json
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import environment, step_contenders
from benchmarks.environment import clocks, spread, take_turns
from benchmarks.our_steps import settings
from benchmarks.step_contenders import LEARNING_RATE, MOMENTUM, SEED, WEIGHT_DECAY, Case
from imta_jax.data.resident import ResidentRows, ResidentSplit
from imta_jax.huge_pages import start_with_huge_pages
from imta_jax.parallel import data_mesh, place_batch, place_once, place_rows
from imta_jax.training import phases
from imta_jax.training.objectives import ALL_PARAMETERS
from imta_jax.training.optimizer import sgd
from imta_jax.training.state import create_state
from imta_jax.training.step import on_batches, on_resident, train_step
from imta_jax.types import Batch

FULL = {"network": "cifar_5_exits", "batch_size": 64, "rounds": 9, "steps": 8}
QUICK = FULL | {"network": "quickstart", "batch_size": 16, "rounds": 3, "steps": 2}
PLAIN, TOGETHER = "as it is", "steps in one dispatch"
# Fields of config.phase_one; `TOGETHER` changes none.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "rematerialize": {"rematerialize": True},
    "accumulate_parts=4": {"accumulate_parts": 4},
    TOGETHER: {},
}


class Option:
    """A compiled step of phase I under an option; calls do `steps` steps, on the same batch.

    Args:
      case: see `Case`; its precision is not looked at.
      name: one of `OPTIONS`.
      steps: of a call.

    Attributes:
      compiled: what XLA made.
      losses: per exit, of the last step.
    """

    def __init__(self, case: Case, name: str, steps: int):
        config, self.steps = dict(settings(case.network)), steps
        self.mesh = data_mesh(jax.devices()[:1])
        config["phase_one"] = phase = {**config["phase_one"], **OPTIONS[name]}
        classifier = phases.new_phase_one(config, case.facts)
        classifier.compute_dtype = jnp.dtype(phase["compute_dtype"])
        objective = phases.phase_one_objective(config)
        objective.set_mode(classifier)
        momentum = {"momentum": MOMENTUM, "nesterov": True, "weight_decay": WEIGHT_DECAY}
        tx = sgd(lambda step: LEARNING_RATE, **momentum)
        graphdef, self.state = create_state(classifier, ALL_PARAMETERS, tx, self.mesh)
        pixels = step_contenders.pixel_statistics(case)
        more = pixels | {"mesh": self.mesh, "parts": phase["accumulate_parts"]}
        step = train_step(graphdef, objective, ALL_PARAMETERS, tx, **more)
        self.together = name == TOGETHER
        jitted = (on_resident if self.together else on_batches)(step, self.mesh)
        self.given = self._resident(case) if self.together else self._batch(case)
        self.compiled = jitted.lower(self.state, *self.given).compile()

    def _batch(self, case: Case) -> tuple[Any, ...]:
        (images, *_), (labels, *_) = step_contenders.draw_batches(case)
        index, ones = np.arange(case.batch_size, dtype=np.int32), np.ones(case.batch_size, bool)
        return (place_batch(Batch(images, labels, ones, index), self.mesh),)

    def _resident(self, case: Case) -> tuple[Any, ...]:
        (images, *_), (labels, *_) = step_contenders.draw_batches(case)
        index = np.tile(np.arange(case.batch_size, dtype=np.int32), (self.steps, 1))
        corner, flip = np.zeros((*index.shape, 2), np.int16), np.zeros(index.shape, bool)
        rows = ResidentRows(index, corner, flip, np.int32(self.steps))
        split = place_once(ResidentSplit(images, labels), self.mesh)
        return split, place_rows(rows, self.mesh)

    def __call__(self, _: int) -> np.ndarray:
        """Seconds per step: on the clock, and of the processor."""
        start = clocks()
        for _ in range(1 if self.together else self.steps):
            self.state, metrics = self.compiled(self.state, *self.given)
        jax.block_until_ready(self.state)
        taken = (clocks() - start) / self.steps
        loss = np.asarray(metrics.loss)
        self.losses = (loss[-1] if self.together else loss).tolist()
        return taken

    @property
    def memory(self) -> float:
        """10^6 bytes that the step takes besides what comes in and goes out."""
        return round(self.compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)


def run(size: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and summary."""
    case = Case(size["network"], size["batch_size"])
    options: dict[str, Callable[[int], Any]] = {}
    for name in OPTIONS:
        print(f"compiling: {name}", flush=True)
        options[name] = Option(case, name, size["steps"])
    seconds = {name: found[:, 0] for name, found in take_turns(options, size["rounds"]).items()}
    rows = [
        {"part": "options", "option": name, "ms": spread(1e3 * seconds[name])}
        | {"memory_mb": option.memory, "losses": sum(option.losses)}
        for name, option in options.items()
    ]
    ratios = {f"time of {n}": seconds[n] / seconds[PLAIN] for n in OPTIONS if n != PLAIN}
    summary = environment.medians(ratios)
    for name, option in options.items():
        summary[f"memory of {name}"] = option.memory / options[PLAIN].memory
    about = {"seeds": [SEED], **size, "data": "noise", "targets": {}}
    return about | {"rows": rows, "summary": summary}


def main() -> None:
    """Measures, prints the tables and writes the result."""
    arguments = environment.argument_parser(__doc__).parse_args()
    result = run(QUICK if arguments.quick else FULL)
    environment.write_result(arguments.out, (jax, flax, np), result)


if __name__ == "__main__":
    start_with_huge_pages()  # as launch.py does
    main()
