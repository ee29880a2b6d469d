"""Measures the time profile of a network's stages, once per device, and caches it as JSON."""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imta_jax.inference.engine.compaction import State
from imta_jax.inference.engine.engine import Engine, SegmentOutput, max_score
from imta_jax.inference.engine.profile import StageProfile
from imta_jax.inference.engine.programs import GatherKey, Programs, Segment
from imta_jax.runtime import parallel_compilation
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.progress_bar import with_progress

_log = logging.getLogger(__name__)

# Above every confidence, but low enough that the exits stay active: all images continue, which is
# the slowest case. For other exit rules it is `max_score`.
_UNREACHED_THRESHOLD = 1.0 + 5e-6
_FORMAT = 2  # Format of the cached file.
_ROUNDS, _BLOCK_SECONDS = 5, 0.01


class MeasurementStoppedError(Exception):
    """A measurement was stopped."""


def load_or_measure_profile(
    programs: Programs,
    sizes: Sequence[int],
    num_workers: int = 1,
    folder: str | Path | None = None,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> StageProfile:
    """Returns the profile of this device, from the cache if it was measured before.

    Args:
      programs: the network's programs.
      sizes: batch sizes, ascending.
      num_workers: programs that run at the same time.
      folder: folder of the cache; default ~/.cache/imta_jax/profiles.
      is_stopped: whether to stop; called often.

    Raises:
      MeasurementStoppedError: `is_stopped` returned True.
    """
    cached = cached_profile(programs, sizes, num_workers, folder)
    if cached is not None:
        return cached
    profile = _measure(programs, tuple(sizes), num_workers, is_stopped)
    path = _cache_path(programs, sizes, num_workers, folder)
    try:
        profile.save(path)
    except OSError as error:
        _log.warning("profile not cached, the next process measures again: %s: %s", path, error)
    return profile


def cached_profile(
    programs: Programs, sizes: Sequence[int], num_workers: int, folder: str | Path | None = None
) -> StageProfile | None:
    """Returns the profile of the export or the cached profile of this device, or None.

    See `load_or_measure_profile`.
    """
    # An export's profile comes first: its compiled programs are those of plans from it.
    for profile in programs.network.profiles:
        if profile.num_workers == num_workers and (times := profile.at_sizes(sizes)) is not None:
            return times
    try:
        return StageProfile.load(_cache_path(programs, sizes, num_workers, folder))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        _log.warning("cached profile ignored: %s", error)
        return None


def _cache_path(
    programs: Programs, sizes: Sequence[int], num_workers: int, folder: str | Path | None
) -> Path:
    """The cache file. Its name depends on programs, device, CPU cores and jax version."""
    environment = (_device(), _versions(), usable_cores())
    key = (_FORMAT, programs.network.name, environment, tuple(sizes), num_workers)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    folder = Path(folder or parallel_compilation.DEFAULT_CACHE_DIR / "profiles").expanduser()
    return folder / f"{digest}.json"


def _device() -> str:
    return str(jax.devices()[0].device_kind)


def _versions() -> dict[str, str]:
    return {"jax": jax.__version__, "jaxlib": metadata.version("jaxlib")}


def _measure(
    programs: Programs,
    sizes: tuple[int, ...],
    num_workers: int,
    is_stopped: Callable[[], bool],
) -> StageProfile:
    """Measures powers of two and the largest size. Other sizes are interpolated."""
    measured = tuple(n for n in sizes if n & (n - 1) == 0 or n in (sizes[0], sizes[-1]))
    tables = _measure_sizes(programs, measured, num_workers, is_stopped)
    network = programs.network.name
    profile = StageProfile(network, _device(), _versions(), num_workers, measured, *tables)
    interpolated = profile.at_sizes(sizes)
    assert interpolated is not None, "the smallest and the largest size are measured"
    return interpolated


def _measure_sizes(
    programs: Programs,
    sizes: tuple[int, ...],
    num_workers: int,
    is_stopped: Callable[[], bool],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Milliseconds of stages [E, S], compactions before all but the first, and the network [S]."""
    network = programs.network
    unreached = _UNREACHED_THRESHOLD if network.rule is None else max_score(network)
    thresholds = np.full(network.num_exits, unreached, np.float32)
    engine = Engine(programs, thresholds)
    stages = [Segment(i, i) for i in range(network.num_exits)]
    stages.append(Segment(0, network.num_exits - 1))
    _compile(engine, stages, sizes, is_stopped)
    # Each entry makes a function to time, one per worker: stages and network, then compactions.
    makers = [
        *(functools.partial(_stage_run, engine, stage, size) for stage in stages for size in sizes),
        *(
            functools.partial(_compaction_run, engine, stage, size)
            for stage in range(1, network.num_exits)
            for size in sizes
        ),
    ]
    work = with_progress(
        makers * _ROUNDS, total=len(makers) * _ROUNDS, description="profile", log=_log
    )
    with ThreadPoolExecutor(num_workers) as threads:
        times = []
        for make in work:
            _check_not_stopped(is_stopped)
            times.append(_block_ms([make() for _ in range(num_workers)], threads))
    # The rounds are separated in time, so that a short load on the machine affects one of them. The
    # median, not the minimum: in use, too, the caches hold other data when a program starts.
    median = np.median(np.reshape(times, (_ROUNDS, -1)), axis=0)
    table, count = median.reshape(-1, len(sizes)), network.num_exits
    stage_ms, network_ms, compaction_ms = table[:count], table[count], table[count + 1 :]
    stage_ms[1:] += compaction_ms  # a stage begins with a gather
    return stage_ms, compaction_ms, network_ms


def _compile(
    engine: Engine,
    stages: Sequence[Segment],
    sizes: Sequence[int],
    is_stopped: Callable[[], bool],
) -> None:
    """Compiles the programs to measure, as many at a time as there are cores."""
    pairs = [(stage, size) for stage in stages for size in sizes]
    count = usable_cores()
    for start in range(0, len(pairs), count):
        _check_not_stopped(is_stopped)
        engine.compile(pairs[start : start + count])
    for stage in range(1, engine.network.num_exits):
        _check_not_stopped(is_stopped)
        engine.programs.get([GatherKey(stage, size, size) for size in sizes])


def _check_not_stopped(is_stopped: Callable[[], bool]) -> None:
    if is_stopped():
        raise MeasurementStoppedError


def _stage_run(engine: Engine, stage: Segment, size: int) -> Callable[[], object]:
    """Makes a function that runs one stage on zero images and waits for the result."""
    network = engine.network
    if stage.first == 0:
        images = np.zeros((size, *network.image_shape), network.image_dtype)
        return lambda: engine.fetch(engine.run_images(stage, size, images), size)
    state = _zeros(engine, stage.first, size)
    return lambda: engine.fetch(engine.run(stage, size, state), size)


def _compaction_run(engine: Engine, stage: int, size: int) -> Callable[[], object]:
    """Makes a function that gathers all images of a batch in another order."""
    predictions = jnp.zeros((3, size), jnp.int32)
    source = SegmentOutput(predictions, _zeros(engine, stage, size), size)
    if size == 1:
        return lambda: None  # one image is never moved
    order = np.arange(size)[::-1]
    return lambda: jax.block_until_ready(engine.gather(stage, source, order, size))


def _zeros(engine: Engine, stage: int, size: int) -> State:
    shapes = engine.programs.state_shapes(stage, size)
    return tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)


def _block_ms(runs: Sequence[Callable[[], object]], threads: ThreadPoolExecutor) -> float:
    """The time of all `runs` in parallel, in milliseconds, divided by their number."""

    def block() -> float:
        start = time.perf_counter()
        list(threads.map(lambda run: [run() for _ in range(repeats)], runs))
        return (time.perf_counter() - start) / repeats

    repeats = 1
    block()
    # Enough repetitions that the start of the threads does not count.
    repeats = max(1, int(_BLOCK_SECONDS / block()))
    return 1e3 * block() / len(runs)
