"""A cache of compiled train steps that is read while Python still traces the step.

JAX's persistent cache is looked up after a step was traced and lowered, which takes seconds for a
deep network. Tracing uses one core, and XLA can load an executable on another at the same time. So
the executable that the last launch of a config used is read ahead of time, and used only if the
lowered program is the one that it was compiled from. A stale executable is never run.

Executables are read with pickle and run as machine code. So only files of this user are read, with
mode 0600 in a folder with mode 0700 (see `private_files`); others are ignored with a warning.

JAX's own cache is disabled while a step compiles: jaxlib 0.10 serializes an executable that came
from that cache without its functions.
"""

import functools
import hashlib
import logging
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from imta_jax.runtime.machine import cpu_features
from imta_jax.runtime.parallel_compilation import without_jax_cache
from imta_jax.runtime.private_files import NotPrivateError, read_private, write_private
from imta_jax.runtime.prng_keys import pickle_generators_by_name
from imta_jax.runtime.saved_executable import is_saved, load_executable

_log = logging.getLogger(__name__)
_FORMAT = "2"  # Format 1 has copies of random number generators; see `pickle_generators_by_name`.


class _Entry(NamedTuple):
    """A loaded executable, the key of its program, and the structure of arguments and results."""

    key: str
    run: Callable[..., Any]
    arguments: jax.tree_util.PyTreeDef  # pyright: ignore[reportInvalidTypeForm]
    results: jax.tree_util.PyTreeDef  # pyright: ignore[reportInvalidTypeForm]

    def matches(self, lowered: jax.stages.Lowered) -> bool:
        """Whether it takes and returns the same pytrees, which equal programs need not do."""
        try:
            return (self.arguments, self.results) == (lowered.in_tree, lowered.out_tree)
        except Exception:  # Pickled classes of an older version may lack attributes.
            return False


class CachedExecutable:
    """A jitted step that is loaded from the cache, or compiled and stored, on its first call.

    Prefetches the last executable of its label on construction. Without a local
    `jax_compilation_cache_dir`, or with several processes, the step is only compiled.

    Args:
      jitted: result of `jax.jit`; all calls have arguments of the same shapes.
      label: names the step's config, so that its last executable is known before it is traced.
      mesh: the devices that run it.
      saved: path of an executable that was compiled ahead of time (`saved_executable`), or None. It
        is used if it fits, with several processes too.
    """

    def __init__(
        self, jitted: jax.stages.Wrapped, label: str, mesh: Mesh, saved: Path | None = None
    ):
        self._jitted, self._label, self._saved = jitted, label, saved
        self._mesh_devices = list(mesh.devices.flat)
        self._devices = [device.id for device in self._mesh_devices]
        self._run: Callable[..., Any] | None = None
        prefetch_executable(label)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the step; arguments that the jitted step donates are donated."""
        run = self._run
        if run is None:
            run = self._load_saved(arguments)
            if run is None:
                run = self._load_or_compile(arguments) if _folder() else self._jitted
            self._run = run
        return run(*arguments)

    def _load_saved(self, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
        if self._saved is None or not is_saved(self._saved):
            return None
        lowered = self._jitted.lower(*arguments)
        return load_executable(self._saved, lowered, self._mesh_devices)

    def _load_or_compile(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        lowered = self._jitted.lower(*arguments)
        key = _program_key(lowered, self._devices)
        prefetched = _prefetched.pop(self._label, None)
        entry = prefetched.result() if prefetched else None
        if entry is None or entry.key != key:
            entry = _read(key)
        if entry and entry.matches(lowered):
            _background().submit(_write_last_key, self._label, key)
            return entry.run
        with without_jax_cache():
            compiled = lowered.compile()
        _background().submit(_write, self._label, key, compiled, self._devices)
        return compiled


def prefetch_executable(label: str) -> None:
    """Starts to read the last executable of a label in the background."""
    if _folder() and label not in _prefetched:
        _prefetched[label] = _background().submit(_read_last, label)


# By label, until the executable is first called.
_prefetched: dict[str, Future[_Entry | None]] = {}


@functools.cache
def _background() -> ThreadPoolExecutor:
    """One thread, because XLA loads an executable on one core. The process waits for it at exit."""
    return ThreadPoolExecutor(1, "executable_cache")


def _folder() -> Path | None:
    """The folder of the cache; None if it is disabled."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    if not cache or "://" in cache or jax.process_count() > 1:
        return None
    return Path(cache) / "steps"


def _program_key(lowered: jax.stages.Lowered, devices: Sequence[int]) -> str:
    """Hash of everything that affects the executable or whether this machine can run it."""
    digest = hashlib.sha256(lowered.as_text().encode())
    client = jax.local_devices()[0].client
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    versions = (
        _FORMAT,
        jax.__version__,
        jaxlib.version.__version__,
        flax.__version__,
        client.platform_version,
    )
    kinds = [device.device_kind for device in jax.devices()]
    settings = sorted(item for item in jax.config.values.items() if "_cache_" not in item[0])
    for part in (versions, kinds, devices, flags, settings, cpu_features()):
        digest.update(repr(part).encode())
    return digest.hexdigest()


def _read_last(label: str) -> _Entry | None:
    """The executable that was last used under a label."""
    key = _read_file(_last_name(label))
    try:
        return _read(key.decode()) if key else None
    except ValueError:  # Damaged: it is written again.
        return None


def _read(key: str) -> _Entry | None:
    """The executable of a key, loaded; None if there is none or this version cannot read it."""
    content = _read_file(f"{key}.step")
    if content is None:
        return None
    try:
        program, arguments, results, ids = pickle.loads(zlib.decompress(content))
        devices = {device.id: device for device in jax.devices()}
        run = serialize_executable.deserialize_and_load(
            program, arguments, results, execution_devices=[devices[i] for i in ids]
        )
    except Exception as error:  # Damage and other versions raise many types.
        path, kind = f"{_folder()}/{key}.step", type(error).__name__
        _log.info("%s cannot be read (%s: %s); compiling", path, kind, error)
        return None
    return _Entry(key, run, arguments, results)


def _write(label: str, key: str, compiled: jax.stages.Compiled, devices: Sequence[int]) -> None:
    try:
        pickle_generators_by_name()
        content = (*serialize_executable.serialize(compiled), devices)
    except (ValueError, NotImplementedError) as error:  # Some backends cannot serialize.
        _log.debug("the compiled step is not cached: %s", error)
        return
    _write_file(f"{key}.step", zlib.compress(pickle.dumps(content), 1))
    _write_last_key(label, key)


def _read_file(name: str) -> bytes | None:
    """The content of a file of the cache; None if it is missing or not this user's alone."""
    folder = _folder()
    try:
        return read_private(folder, name) if folder else None
    except NotPrivateError as error:
        _log.warning("a compiled step is ignored, because others may have written it: %s", error)
    except (OSError, ValueError):  # Missing, or a damaged key that is no file name.
        pass
    return None


def _write_last_key(label: str, key: str) -> None:
    _write_file(_last_name(label), key.encode())


def _last_name(label: str) -> str:
    return f"{label}.{_FORMAT}.last"


def _write_file(name: str, content: bytes) -> None:
    """Writes a file of the cache. Without it, the next launch is only slower."""
    folder = _folder()
    if folder is None:
        return
    try:
        write_private(folder, name, content)
    except OSError as error:
        _log.info("the compiled step is not cached in %s: %s", folder, error)
