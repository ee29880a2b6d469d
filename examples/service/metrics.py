"""Counters of the service, as text in the Prometheus exposition format."""

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_QUANTILES = (0.5, 0.9, 0.99)


@dataclasses.dataclass
class Metrics:
    """Counters since the start. Used from the event loop only.

    Attributes:
      requests: number of requests by HTTP status.
      exits: classified images by exit, from 1.
      shed: refused because of load, by reason.
      refused: refused because of the request, by reason.
      late: classified after their deadline.
      latencies: seconds from request to response, of the latest images.
    """

    requests: Counter[str] = dataclasses.field(default_factory=Counter)
    exits: Counter[str] = dataclasses.field(default_factory=Counter)
    shed: Counter[str] = dataclasses.field(default_factory=Counter)
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    late: int = 0
    num_classified: int = 0
    total_seconds: float = 0.0
    latencies: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=10_000))

    def classified(self, exit_index: int, seconds: float, in_time: bool) -> None:
        """Counts a classified image."""
        self.exits[str(exit_index + 1)] += 1
        self.late += not in_time
        self.num_classified += 1
        self.total_seconds += seconds
        self.latencies.append(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All metrics; `gauges` are further values by name."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        for name, label, counts in [
            ("requests", "status", self.requests),
            ("exits", "exit", self.exits),
            ("shed", "reason", self.shed),
            ("refused", "reason", self.refused),
        ]:
            yield f"# TYPE imta_{name}_total counter"
            yield from (f'imta_{name}_total{{{label}="{k}"}} {v}' for k, v in counts.items())
        yield "# TYPE imta_late_total counter"
        yield f"imta_late_total {self.late}"
        yield "# TYPE imta_latency_seconds summary"
        values = np.quantile(self.latencies, _QUANTILES) if self.latencies else [math.nan] * 3
        for quantile, value in zip(_QUANTILES, values, strict=True):
            yield f'imta_latency_seconds{{quantile="{quantile}"}} {_number(value)}'
        yield f"imta_latency_seconds_sum {_number(self.total_seconds)}"
        yield f"imta_latency_seconds_count {self.num_classified}"
        for name, value in gauges.items():
            yield f"# TYPE imta_{name} gauge"
            yield f"imta_{name} {_number(value)}"


def _number(value: Any) -> str:
    return "NaN" if math.isnan(value) else f"{float(value):.6g}"
