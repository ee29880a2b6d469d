"""The time profile of a network's stages on a device: a table, a JSON file, and costs in time.

`profiling` measures profiles, `planning` uses them.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from tabulate import tabulate

from imta_jax.errors import InputError
from imta_jax.inference.engine.programs import Segment
from imta_jax.inference.engine.staged import StagedNetwork
from imta_jax.runtime.files import write_json

# Names in the JSON file, where they differ from the attribute's.
_JSON_NAMES = {"num_workers": "lanes", "compaction_ms": "hand_over_ms"}
_ASSUMED = "assumed"  # the device of a profile that was not measured
_TABLES = ("stage_ms", "compaction_ms", "network_ms")


@dataclasses.dataclass(frozen=True)
class StageProfile:
    """Milliseconds per program, host sync included; the median of several runs.

    With several workers, all of them run during the measurement, and the time is divided by their
    number: it is what one program adds to the time of a large batch.

    Attributes:
      network: name of the `StagedNetwork`.
      device: the device that was measured; "assumed" for a profile that was not measured.
      versions: versions of jax and jaxlib.
      num_workers: programs that ran at the same time.
      sizes: batch sizes [S], ascending.
      stage_ms: a stage with its exit, compaction included.
      compaction_ms: the gather after each stage but the last, alone.
      network_ms: the full network as one program; None if it was not measured.
    """

    network: str
    device: str
    versions: dict[str, str]
    num_workers: int
    sizes: tuple[int, ...]
    stage_ms: Float64[np.ndarray, "E S"]
    compaction_ms: Float64[np.ndarray, "E-1 S"]
    network_ms: Float64[np.ndarray, " S"] | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the times were measured and not assumed."""
        return self.device != _ASSUMED

    def segment_ms(self, segment: Segment) -> Float64[np.ndarray, " S"]:
        """Milliseconds of stages compiled together, which saves the compaction between them."""
        first, last = segment
        if self.network_ms is not None and last - first == len(self.stage_ms) - 1:
            return self.network_ms
        total = self.stage_ms[first : last + 1].sum(axis=0)
        return np.maximum(total - self.compaction_ms[first:last].sum(axis=0), 0.05 * total)

    def exit_ms(self, batch_size: int | None = None) -> Float64[np.ndarray, " E"]:
        """Cost of leaving at each exit, in time instead of multiply-adds.

        Args:
          batch_size: one of `sizes`; by default, the fastest size per image.

        Returns:
          Milliseconds per image, cumulative over the stages.

        Raises:
          ValueError: the batch size was not measured.
        """
        per_image = self.stage_ms / np.asarray(self.sizes)
        if batch_size is None:
            return np.cumsum(per_image[:, per_image.sum(axis=0).argmin()])
        if batch_size not in self.sizes:
            raise InputError(
                f"batch_size {batch_size} was not measured; expected one of {self.sizes}"
            )
        return np.cumsum(per_image[:, self.sizes.index(batch_size)])

    def per_image_ms(self) -> tuple[Float64[np.ndarray, " E"], Float64[np.ndarray, " E-1"]]:
        """Milliseconds per image of stages and compactions, at the fastest batch size."""
        sizes = np.asarray(self.sizes)
        fastest = (self.stage_ms / sizes).sum(axis=0).argmin()
        return (
            self.stage_ms[:, fastest] / sizes[fastest],
            self.compaction_ms[:, fastest] / sizes[fastest],
        )

    def table(self) -> str:
        """Formats the profile as text, one line per stage and batch size."""
        compaction_ms = np.append(self.compaction_ms, np.zeros((1, len(self.sizes))), axis=0)
        rows = [
            {
                "stage": i + 1,
                "batch size": size,
                "ms": self.stage_ms[i, s],
                "compaction included (ms)": compaction_ms[i, s],
                "us per image": 1e3 * self.stage_ms[i, s] / size,
            }
            for i in range(len(self.stage_ms))
            for s, size in enumerate(self.sizes)
        ]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        title = f"{self.device}, {self.num_workers} at a time ({versions})"
        table = tabulate(rows, headers="keys", floatfmt=".3f", tablefmt="plain")
        return f"{title}\n{table}"

    def at_sizes(self, sizes: Sequence[int]) -> "StageProfile | None":
        """The profile at other batch sizes, interpolated; None if they exceed the measured ones.

        Args:
          sizes: batch sizes, ascending.
        """
        if not self.sizes[0] <= sizes[0] <= sizes[-1] <= self.sizes[-1]:
            return None
        tables = {name: getattr(self, name) for name in _TABLES}
        interpolated: dict[str, Any] = {
            name: np.apply_along_axis(lambda row: np.interp(sizes, self.sizes, row), -1, table)
            for name, table in tables.items()
            if table is not None
        }
        return dataclasses.replace(self, sizes=tuple(sizes), **interpolated)

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON values."""
        fields = dataclasses.asdict(self)
        fields |= {n: fields[n].tolist() for n in _TABLES if fields[n] is not None}
        return {_JSON_NAMES.get(name, name): value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "StageProfile":
        """The profile of `to_dict`.

        Raises:
          KeyError: a field is missing.
          TypeError: a field has another type.
          ValueError: times or sizes are not valid.
        """
        stored = {"network_ms": None, **stored}  # not in files of earlier versions
        names = (field.name for field in dataclasses.fields(cls))
        fields = {name: stored[_JSON_NAMES.get(name, name)] for name in names}
        fields["sizes"] = tuple(fields["sizes"])
        for name in (n for n in _TABLES if fields[n] is not None):
            fields[name] = np.asarray(fields[name], np.float64)
        _check_sizes(fields["sizes"])
        _check_times(*(fields[name] for name in _TABLES), num_sizes=len(fields["sizes"]))
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Writes the profile as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "StageProfile":
        """Reads a profile that `save` wrote.

        Raises:
          FileNotFoundError: the file does not exist.
          ValueError: the file is not a profile.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a profile ({type(error).__name__}: {error}); delete it to measure "
                "again"
            ) from error


def estimated_profile(network: StagedNetwork, sizes: Sequence[int]) -> StageProfile:
    """A profile for use before anything is measured.

    Time is proportional to multiply-adds, plus a constant for the host sync.
    """
    share = np.diff(network.macs, prepend=0) / network.macs[-1]
    stage_ms = 0.1 + share[:, None] * np.asarray(sizes, float)
    compaction_ms = np.full((network.num_exits - 1, len(sizes)), 0.1)
    network_ms = 0.1 + np.asarray(sizes, float)
    return StageProfile(
        network.name, _ASSUMED, {}, 1, tuple(sizes), stage_ms, compaction_ms, network_ms
    )


def _check_times(
    stage_ms: Float[np.ndarray, "..."],
    compaction_ms: Float[np.ndarray, "..."],
    network_ms: Float[np.ndarray, "..."] | None,
    num_sizes: int,
) -> None:
    if stage_ms.ndim != 2 or stage_ms.shape[1] != num_sizes:
        raise InputError(f"stage_ms: expected [E, {num_sizes}]; found {stage_ms.shape}")
    expected = (len(stage_ms) - 1, num_sizes)
    if compaction_ms.shape != expected:
        raise InputError(f"compaction_ms: expected {expected}; found {compaction_ms.shape}")
    if not ((stage_ms > 0) & np.isfinite(stage_ms)).all():
        raise InputError(f"stage_ms: expected finite times above 0; found {stage_ms.tolist()}")
    if not np.isfinite(compaction_ms).all():
        raise InputError(f"compaction_ms: expected finite times; found {compaction_ms.tolist()}")
    if network_ms is None:
        return
    if network_ms.shape != (num_sizes,):
        raise InputError(f"network_ms: expected [{num_sizes}]; found {network_ms.shape}")
    if not ((network_ms > 0) & np.isfinite(network_ms)).all():
        raise InputError(f"network_ms: expected finite times above 0; found {network_ms.tolist()}")


def _check_sizes(sizes: tuple[Any, ...]) -> None:
    integers = all(type(size) is int and size > 0 for size in sizes)
    if not sizes or not integers or sorted(set(sizes)) != list(sizes):
        raise InputError(f"sizes: expected ascending integers above 0; found {sizes}")
