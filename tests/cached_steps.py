"""A step with a cached executable, launched as in a new process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from imta_jax.distributed import replicated
from imta_jax.runtime import executable_cache
from imta_jax.runtime.executable_cache import CachedExecutable

TABLE = np.random.default_rng(1).normal(size=2048).astype(np.float32)


class Launch(NamedTuple):
    """The first call of a step: its results, and whether it donated and compiled."""

    results: tuple[np.ndarray, np.ndarray]
    donated: bool
    compiled: bool


def make_step(table: np.ndarray, mesh):
    """A step with a donated state and a constant."""
    replicate = replicated(mesh)
    return jax.jit(
        lambda state, x: (state + x * jnp.asarray(table), state.sum()),
        donate_argnums=0,
        in_shardings=(replicate, replicate),
        out_shardings=replicate,
    )


def arguments(mesh):
    """The state and the input of the step, replicated."""
    generator = np.random.default_rng(0)
    draw = [generator.normal(size=2048).astype(np.float32) for _ in range(2)]
    return [jax.device_put(x, replicated(mesh)) for x in draw]


def call_in_new_process(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Clears JAX's caches and calls. Returns the result and whether a program was compiled."""
    jax.clear_caches()
    compile_one = jax.stages.Lowered.compile
    with mock.patch.object(
        jax.stages.Lowered, "compile", autospec=True, side_effect=compile_one
    ) as compiling:
        result = call()
        # Waits for background reads and writes.
        executable_cache._background().submit(int).result()
    return result, compiling.called


def launch(table: np.ndarray, mesh, label: str = "label") -> Launch:
    """Calls a cached step once, as in a new process."""
    step_arguments = arguments(mesh)
    results, compiled = call_in_new_process(
        lambda: CachedExecutable(make_step(table, mesh), label, mesh)(*step_arguments)
    )
    return Launch(jax.device_get(results), step_arguments[0].is_deleted(), compiled)


def stored(folder: Path) -> set[str]:
    """Names of the stored executables."""
    return {path.name for path in folder.glob("*.step")}
