"""Compiled steps that a later launch reads back while it still traces.

JAX keeps compiled programs too, and looks for one when the step has been traced and lowered. Both
take seconds, of a deep network: Python traces on one core while XLA, which needs nothing of Python
meanwhile, could read on another. So the step that the last launch of a config used is read at once,
and used only if what was lowered is what it was compiled from. Nothing can be out of date. JAX's
own cache is left out: of a program that JAX read from it, jaxlib 0.10 writes one without functions.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pickle
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from imta_jax.runtime.config_diff import plain
from imta_jax.runtime.files import write_atomically

_log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """A step that was read, the key of what it was compiled from, and what it takes and returns."""

    key: str
    run: Callable[..., Any]
    arguments: jax.tree_util.PyTreeDef
    results: jax.tree_util.PyTreeDef

    def fits(self, lowered: jax.stages.Lowered) -> bool:
        """Whether it can be called in its place: equal programs may name their arguments anew."""
        return (self.arguments, self.results) == (lowered.in_tree, lowered.out_tree)


class KeptStep:
    """A jitted step, on its first call read back from a former launch or compiled, and then kept.

    Reads what the last step of this label was as soon as it is made. Without a local folder for
    compiled programs (`jax_compilation_cache_dir`), or with several processes, it only compiles.

    Args:
      jitted: what `jax.jit` made; all its calls have arguments of the same shapes.
      label: see `step_label`.
      mesh: the devices that it runs on.
    """

    def __init__(self, jitted: Any, label: str, mesh: Mesh):
        self._jitted, self._label = jitted, label
        self._devices = [device.id for device in mesh.devices.flat]
        self._run: Callable[..., Any] | None = None
        read_ahead(label)

    def __call__(self, *arguments: Any) -> Any:
        """What the jitted step returns; donates what it donates."""
        if self._run is None:
            self._run = self._first(arguments) if _folder() else self._jitted
        return self._run(*arguments)

    def _first(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        lowered = self._jitted.lower(*arguments)
        key = _key(lowered, self._devices)
        last = _ahead.pop(self._label, None)
        kept = last.result() if last else None
        if kept is None or kept.key != key:
            kept = _read(key)
        if kept and kept.fits(lowered):
            _background().submit(_remember, self._label, key)
            return kept.run
        with _without_cache():
            compiled = lowered.compile()
        _background().submit(_write, self._label, key, compiled, self._devices)
        return compiled


def step_label(config: Mapping[str, Any], phase: str) -> str:
    """Names a config's step in a phase: it tells which program to read before there is one.

    Args:
      config: a whole config.
      phase: "phase_one" or "phase_two".
    """
    parts = [phase, *(plain(config[name]) for name in ("model", phase, "data", "mesh"))]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()[:16]


def read_ahead(label: str) -> None:
    """Begins to read, beside everything else, the step that was last used under a label."""
    if _folder() and label not in _ahead:
        _ahead[label] = _background().submit(_read_last, label)


# By label, until they are asked for.
_ahead: dict[str, Future[_Kept | None]] = {}


@functools.cache
def _background() -> ThreadPoolExecutor:
    """One thread: XLA reads a step on one core. A process that ends waits for it."""
    return ThreadPoolExecutor(1, "kept_steps")


def _folder() -> Path | None:
    """Where steps are kept, if they are."""
    cache = jax.config.jax_compilation_cache_dir
    if not cache or "://" in cache or jax.process_count() > 1:
        return None
    return Path(cache) / "steps"


def _key(lowered: jax.stages.Lowered, devices: Sequence[int]) -> str:
    """Of all that decides what XLA makes of a program, and whether this machine can run it."""
    digest = hashlib.sha256(lowered.as_text().encode())
    client = jax.local_devices()[0].client
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    versions = jax.__version__, jaxlib.__version__, flax.__version__, client.platform_version
    kinds = [device.device_kind for device in jax.devices()]
    settings = sorted(item for item in jax.config.values.items() if "_cache_" not in item[0])
    for part in (versions, kinds, devices, flags, settings, _processor()):
        digest.update(repr(part).encode())
    return digest.hexdigest()


@functools.cache
def _processor() -> tuple[str, ...]:
    """The host's processor and what it can do: compiled code may use all of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU "))}
    return platform.machine(), platform.processor(), *sorted(told)


def _read_last(label: str) -> _Kept | None:
    """The step that was last used under a label."""
    folder = _folder()
    try:
        return _read((folder / f"{label}.last").read_text()) if folder else None
    except (OSError, ValueError):  # none yet, or damaged: it will be written again
        return None


def _read(key: str) -> _Kept | None:
    """The step of a key, loaded; None where there is none, or none that this version can read."""
    folder = _folder()
    path = folder / f"{key}.step" if folder else None
    if path is None or not path.exists():
        return None
    try:
        program, arguments, results, ids = pickle.loads(zlib.decompress(path.read_bytes()))
        devices = {device.id: device for device in jax.devices()}
        run = serialize_executable.deserialize_and_load(
            program, arguments, results, execution_devices=[devices[i] for i in ids]
        )
    except Exception as error:  # of any kind: the file is another version's, or damaged
        _log.info("%s cannot be read (%s: %s); compiling", path, type(error).__name__, error)
        return None
    return _Kept(key, run, arguments, results)


def _write(label: str, key: str, compiled: jax.stages.Compiled, devices: Sequence[int]) -> None:
    try:
        content = (*serialize_executable.serialize(compiled), devices)
    except (ValueError, NotImplementedError) as error:  # some kinds of program cannot be
        _log.debug("the step is not kept: %s", error)
        return
    _replace(f"{key}.step", zlib.compress(pickle.dumps(content), 1))
    _remember(label, key)


def _remember(label: str, key: str) -> None:
    _replace(f"{label}.last", key.encode())


def _replace(name: str, content: bytes) -> None:
    """Writes a file whole or not at all; a launch is only slower where it cannot be written."""
    folder = _folder()
    if folder is None:
        return
    try:
        write_atomically(folder / name, content)
    except OSError as error:
        _log.info("the compiled step is not kept in %s: %s", folder, error)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Compiling neither reads nor writes JAX's own cache; JAX settles once whether it has one."""
    wished = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", wished)
        compilation_cache.reset_cache()
