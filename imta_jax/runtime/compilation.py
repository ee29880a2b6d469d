"""Compiling many small programs: several at a time, and kept on disk from the first one on."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from imta_jax.runtime.environment import usable_cores

CACHE = Path("~/.cache/imta_jax")


def compile_all(lowered: Sequence[jax.stages.Lowered]) -> list[jax.stages.Compiled]:
    """Compiles, or reads from JAX's compilation cache, one program for each, in their order."""
    with _every_program_kept(), ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda one: one.compile(), lowered))


@contextlib.contextmanager
def _every_program_kept() -> Iterator[None]:
    """JAX keeps by default what took a second to compile; a stage takes less, and there are many.

    A folder that was set by the caller is used, else our own; none where the caller turned JAX's
    cache off (`jax_enable_compilation_cache`).
    """
    wanted = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir
        or str(CACHE.expanduser()),
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
