"""Reports completed requests to an observer, in the order of submission.

Easy images complete first. In the order of completion, the first images of a burst would be easier
than all of them.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from imta_jax.inference.stream.request import Request

# (images, their `StreamPredictions`, whether each left because of its deadline)
Observer = Callable[[Any, Any, Any], None]

_log = logging.getLogger(__name__)


class OrderedObserver:
    """Calls an observer once per request, in the order of submission.

    Args:
      observer: an exception from it is logged, and it is not called again.
      macs: cumulative per exit.
    """

    def __init__(self, observer: Observer, macs: Int64[np.ndarray, " E"]):
        self._observer, self._macs = observer, macs
        self._requests: deque[Request] = deque()
        self._lock = threading.Lock()
        self._failed = False

    def add(self, request: Request) -> None:
        """Adds a request. Call it in the order of submission."""
        if not self._failed:
            self._requests.append(request)

    def report(self) -> None:
        """Reports the requests that are complete, up to the first that is not."""
        with self._lock:
            while self._requests and self._requests[0].complete:
                request = self._requests.popleft()
                try:
                    predictions = request.predictions(self._macs)
                    self._observer(request.images, predictions, request.truncated)
                except Exception:
                    self._failed = True
                    self._requests.clear()
                    _log.exception("the observer of the stream failed and is not called again")
