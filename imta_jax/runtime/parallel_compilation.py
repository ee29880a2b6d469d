"""Compilation in parallel with JAX's persistent compilation cache, and compilation without it.

The train step has a cache of its own, `executable_cache`, because it is one large program that can
be read while Python still traces it.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from imta_jax.runtime.environment import usable_cores

DEFAULT_CACHE_DIR = Path("~/.cache/imta_jax")

# State of `cache_every_program`: threads in the context, and the settings before the first of them.
_lock, _num_users = threading.Lock(), 0
_before: dict[str, Any] = {}


def compile_all(lowered: Sequence[jax.stages.Lowered]) -> list[jax.stages.Compiled]:
    """Compiles programs on all cores, or reads them from JAX's cache; returns them in order."""
    with cache_every_program(), ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda program: program.compile(), lowered))


@contextlib.contextmanager
def cache_every_program() -> Iterator[None]:
    """Lowers the threshold of JAX's cache, which by default ignores programs of under a second.

    Uses the cache folder that is configured, or `DEFAULT_CACHE_DIR`. With
    `jax_enable_compilation_cache` off, nothing is cached. Threads may be in this context at the
    same time: the last one restores the settings.
    """
    global _num_users, _before
    with _lock:
        if not _num_users:
            settings = {
                "jax_persistent_cache_min_compile_time_secs": 0.0,
                "jax_persistent_cache_min_entry_size_bytes": -1,
                "jax_compilation_cache_dir": str(cache_folder()),
            }
            _before = {name: getattr(jax.config, name) for name in settings}
            _update(settings)
        _num_users += 1
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1
            if not _num_users:
                _update(_before)


def _update(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)


def cache_folder() -> Path:
    """The folder of JAX's cache: the one that is configured, or `DEFAULT_CACHE_DIR`."""
    configured = jax.config.values["jax_compilation_cache_dir"]
    return Path(configured) if configured else DEFAULT_CACHE_DIR.expanduser()


@contextlib.contextmanager
def compiling_into(folder: Path) -> Iterator[None]:
    """Every program that is compiled in this context is written to `folder`, JAX's cache there.

    Programs are compiled again, whatever another cache holds.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()
        with cache_every_program():
            yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def without_jax_cache() -> Iterator[None]:
    """Disables JAX's cache, whose state JAX otherwise evaluates only once.

    An executable that is to be serialized must be compiled in this context: on a CPU, one that was
    read from the cache is serialized without its functions.
    """
    enabled = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
