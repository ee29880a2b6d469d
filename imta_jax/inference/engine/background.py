"""Compilation in the background, while the full network computes the first predictions."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from imta_jax.inference.engine.engine import Engine
from imta_jax.inference.engine.planning import BatchSizes
from imta_jax.inference.engine.programs import Segment

_log = logging.getLogger(__name__)
# Batch sizes of the full network: a single image, and larger batches in slices.
_FULL_NETWORK_SIZES = (1, 32)


def full_network_sizes(sizes: Sequence[int]) -> list[int]:
    """The batch sizes of the full network until the stages are measured.

    Args:
      sizes: batch sizes of the classifier, ascending.
    """
    largest = max(size for size in sizes if size <= max(_FULL_NETWORK_SIZES[-1], sizes[0]))
    return sorted({sizes[0], largest})


class BackgroundWarmUp(threading.Thread):
    """A thread that compiles the full network first, then all other programs.

    The process waits for the thread when it exits.

    Args:
      engine: compiled programs and thresholds.
      sizes: batch sizes of the classifier, ascending.
      limit: largest number of images of one worker.
      warm_up: compiles all other programs.
    """

    def __init__(
        self, engine: Engine, sizes: Sequence[int], limit: int, warm_up: Callable[[], None]
    ):
        super().__init__(name="imta_jax warm-up")
        self._engine, self._warm_up = engine, warm_up
        self._segment = Segment(0, engine.network.num_exits - 1)
        chosen = full_network_sizes(sizes)
        # Nothing is measured yet: the times are assumed to be proportional to the batch sizes.
        ms = np.asarray(chosen, float)
        self._batch_sizes = BatchSizes(chosen, ms, limit, split_ms=0.5)

    def full_network(self) -> tuple[Sequence[Segment], Mapping[Segment, BatchSizes]]:
        """The segment that runs until the warm-up has ended, and its batch sizes."""
        return (self._segment,), {self._segment: self._batch_sizes}

    def run(self) -> None:
        """Compiles; a failure is logged, and `predict` compiles what it needs."""
        try:
            # One by one, because a caller may wait for the first.
            for size in self._batch_sizes.used:
                self._engine.compile([(self._segment, size)])
            self._warm_up()
        except Exception:
            _log.exception("the warm-up in the background failed; programs compile at first use")
