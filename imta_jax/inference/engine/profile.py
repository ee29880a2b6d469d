"""What each stage costs in time on this device, and what it costs to let images leave after it.

Measured once per device, network and batch sizes, and kept as JSON; `StageProfile.table` shows it.
What to make of it is decided in `planning`.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from imta_jax.inference.engine.engine import Engine, Programs, Segment, pool_shapes
from imta_jax.inference.engine.staged import Rows, StagedNetwork
from imta_jax.runtime import parallel_compilation
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.files import write_json
from imta_jax.runtime.progress_bar import with_progress

_log = logging.getLogger(__name__)

# An exit that listens, and lets nobody go: all rows are handed on, which is what takes longest.
_HEARD_BY_NOBODY = 1.0 + 5e-6
_BLOCKS, _BLOCK_SECONDS = 4, 0.01


@dataclasses.dataclass(frozen=True)
class StageProfile:
    """Milliseconds per program, the least of several runs, words with the host included.

    Where several lanes compute at a time they do so while this is measured, and the time of all is
    divided by their number: what a program adds to the time of a large batch.

    Attributes:
      network: name of the `StagedNetwork`.
      device: on which it was measured; "assumed" for a profile that was not.
      versions: of jax and jaxlib.
      lanes: programs that ran at a time.
      sizes: batch sizes [S], rising.
      stage_ms: float64 [E, S], stage and exit, gathering and scattering included.
      hand_over_ms: float64 [E - 1, S], gathering and scattering alone, after that stage.
    """

    network: str
    device: str
    versions: dict[str, str]
    lanes: int
    sizes: tuple[int, ...]
    stage_ms: np.ndarray
    hand_over_ms: np.ndarray

    def segment_ms(self, segment: Segment) -> np.ndarray:
        """Milliseconds [S] of stages compiled together: what is handed over in between is saved."""
        first, last = segment
        whole = self.stage_ms[first : last + 1].sum(axis=0)
        return np.maximum(whole - self.hand_over_ms[first:last].sum(axis=0), 0.05 * whole)

    def exit_ms(self, batch_size: int | None = None) -> np.ndarray:
        """What leaving at each exit costs in time: a budget's unit in place of multiply-adds.

        Args:
          batch_size: one of `sizes`; default, the one that is fastest per image.

        Returns:
          float64 [E], milliseconds per image, cumulative.

        Raises:
          ValueError: a batch size that was not measured.
        """
        per_image = self.stage_ms / np.asarray(self.sizes)
        if batch_size is None:
            return np.cumsum(per_image[:, per_image.sum(axis=0).argmin()])
        if batch_size not in self.sizes:
            raise ValueError(f"batch size {batch_size} was not measured; found {self.sizes}")
        return np.cumsum(per_image[:, self.sizes.index(batch_size)])

    def table(self) -> str:
        """One row per stage and batch size, as text: milliseconds, and microseconds per image."""
        rows = [
            {
                "stage": i + 1,
                "batch size": size,
                "ms": self.stage_ms[i, s],
                "of it handing over (ms)": self.hand_over_ms[i, s]
                if i < len(self.hand_over_ms)
                else 0.0,
                "us per image": 1e3 * self.stage_ms[i, s] / size,
            }
            for i in range(len(self.stage_ms))
            for s, size in enumerate(self.sizes)
        ]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        title = f"{self.device}, {self.lanes} at a time ({versions})"
        return (
            title + "\n" + pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format)
        )

    def save(self, path: str | Path) -> None:
        """Writes it as JSON; a reader sees the old file or the new one."""
        plain = dataclasses.asdict(self)
        plain |= {name: plain[name].tolist() for name in ("stage_ms", "hand_over_ms")}
        write_json(path, plain)

    @classmethod
    def load(cls, path: str | Path) -> "StageProfile":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it holds something else.
        """
        try:
            plain = json.loads(Path(path).read_text())
            plain |= {name: np.asarray(plain[name], float) for name in ("stage_ms", "hand_over_ms")}
            found = cls(**plain | {"sizes": tuple(plain["sizes"])})
            exits, sizes = found.stage_ms.shape
            if sizes != len(found.sizes) or found.hand_over_ms.shape != (exits - 1, sizes):
                raise ValueError(f"{found.stage_ms.shape} times for {len(found.sizes)} sizes")
            if not (found.stage_ms > 0).all():
                raise ValueError("times that are not above 0")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a profile ({error}); delete it, it is made anew"
            ) from error


def assumed_profile(network: StagedNetwork, sizes: Sequence[int]) -> StageProfile:
    """A stand-in until something was measured: time as multiply-adds, and a word with the host."""
    share = np.diff(network.macs, prepend=0) / network.macs[-1]
    stage_ms = 0.1 + share[:, None] * np.asarray(sizes, float)
    hand_over_ms = np.full((network.num_exits - 1, len(sizes)), 0.1)
    return StageProfile(network.name, "assumed", {}, 1, tuple(sizes), stage_ms, hand_over_ms)


def measured_profile(
    programs: Programs,
    sizes: Sequence[int],
    lanes: int = 1,
    folder: str | Path | None = None,
) -> StageProfile:
    """The profile of this device: read if it was measured before, else measured and kept.

    Args:
      programs: see `Programs`.
      sizes: batch sizes, rising.
      lanes: how many programs run at a time.
      folder: where profiles are kept; default ~/.cache/imta_jax/profiles.
    """
    kept = kept_profile(programs, sizes, lanes, folder)
    if kept is not None:
        return kept
    found = _measure(programs, tuple(sizes), lanes)
    try:
        found.save(_path(programs, sizes, lanes, folder))
    except OSError as error:
        _log.warning("the profile is not kept, it will be measured again: %s", error)
    return found


def kept_profile(
    programs: Programs, sizes: Sequence[int], lanes: int, folder: str | Path | None = None
) -> StageProfile | None:
    """The profile of this device if it was measured before; arguments as `measured_profile`."""
    try:
        return StageProfile.load(_path(programs, sizes, lanes, folder))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        _log.warning("%s", error)
        return None


def _path(programs: Programs, sizes: Sequence[int], lanes: int, folder: str | Path | None) -> Path:
    root = Path(folder or parallel_compilation.DEFAULT_CACHE_DIR / "profiles").expanduser()
    return root / f"{_key(programs, sizes, lanes)}.json"


def _key(programs: Programs, sizes: Sequence[int], lanes: int) -> str:
    """What a profile holds for: other programs, another device or another jax make another one."""
    where = (_device(), _versions(), usable_cores())
    parts = (programs.network.name, where, tuple(sizes), programs.capacity, lanes)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _device() -> str:
    return str(jax.devices()[0].device_kind)


def _versions() -> dict[str, str]:
    return {"jax": jax.__version__, "jaxlib": jax.lib.__version__}


def _measure(programs: Programs, sizes: tuple[int, ...], lanes: int) -> StageProfile:
    network = programs.network
    engine = Engine(programs, np.full(network.num_exits, _HEARD_BY_NOBODY))
    stages = [Segment(i, i) for i in range(network.num_exits)]
    engine.prepare((stage, size) for stage in stages for size in sizes)
    makers = [
        *(functools.partial(_stage_run, engine, stage, size) for stage in stages for size in sizes),
        *(
            functools.partial(_hand_over_run, shapes, size)
            for shapes in pool_shapes(network, programs.capacity).values()
            for size in sizes
        ),
    ]
    work = with_progress(makers, total=len(makers), description="profile", log=_log)
    with ThreadPoolExecutor(lanes) as threads:
        found = [_least_milliseconds([make() for _ in range(lanes)], threads) for make in work]
    table, count = np.asarray(found).reshape(-1, len(sizes)), network.num_exits
    return StageProfile(
        network.name, _device(), _versions(), lanes, sizes, table[:count], table[count:]
    )


def _stage_run(engine: Engine, stage: Segment, size: int) -> Callable[[], None]:
    pools, rows = engine.new_pools(), np.arange(size)
    network = engine.network
    images = np.zeros((size, *network.image_shape), network.image_dtype)
    return lambda: engine.finish(
        engine.start(pools, stage, size, rows, images if stage.first == 0 else None), size
    )


def _hand_over_run(shapes: Rows, size: int) -> Callable[[], None]:
    """Rows of one pool to those of another, and a word with the host."""

    def hand_over(source: Rows, target: Rows, rows: jax.Array) -> tuple[jax.Array, Rows]:
        waiting = (x.at[rows].get(mode="clip") for x in source)
        target = tuple(x.at[rows].set(y, mode="drop") for x, y in zip(target, waiting, strict=True))
        return rows + 1, target

    program = jax.jit(hand_over, donate_argnums=1)
    source, target = (tuple(jnp.zeros(s.shape, s.dtype) for s in shapes) for _ in range(2))
    rows = np.arange(size, dtype=np.int32)

    def run() -> None:
        nonlocal target
        answer, target = program(source, target, rows)
        np.asarray(answer)

    return run


def _least_milliseconds(runs: Sequence[Callable[[], object]], threads: ThreadPoolExecutor) -> float:
    """The least time of doing all `runs` at once, divided by how many they are."""

    def block() -> float:
        start = time.perf_counter()
        list(threads.map(lambda run: [run() for _ in range(repeats)], runs))
        return (time.perf_counter() - start) / repeats

    repeats = 1
    block()
    # So many that starting threads does not count.
    repeats = max(1, int(_BLOCK_SECONDS / block()))
    return 1e3 * min(block() for _ in range(_BLOCKS)) / len(runs)
