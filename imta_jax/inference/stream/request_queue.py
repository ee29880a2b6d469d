"""The queue of a stream: images that no worker has started yet, first in, first out."""

import threading
from collections import deque

import numpy as np

from imta_jax.inference.stream.request import Request


class RequestQueue:
    """A first-in, first-out queue shared by all workers. Every method needs `condition` held.

    Attributes:
      condition: protects the queue and signals changes.
      num_images: images in the queue.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.num_images = 0
        # Each request with the number of its images that have left the queue.
        self._requests: deque[tuple[Request, int]] = deque()
        self._num_with_deadline = 0  # requests in the queue

    def add(self, request: Request) -> None:
        """Appends all images of a request."""
        self._requests.append((request, 0))
        self.num_images += len(request.images)
        self._num_with_deadline += request.deadline < np.inf
        self.condition.notify_all()

    def take(self, count: int) -> list[tuple[Request, np.ndarray]]:
        """Removes up to `count` images; returns requests with the positions of their images."""
        taken = []
        while count and self._requests:
            request, begin = self._requests.popleft()
            end = min(begin + count, len(request.images))
            taken.append((request, np.arange(begin, end)))
            count -= end - begin
            self.num_images -= end - begin
            if end < len(request.images):
                self._requests.appendleft((request, end))
            else:
                self._num_with_deadline -= request.deadline < np.inf
        return taken

    def oldest(self) -> Request | None:
        """Returns the first request, or None if the queue is empty."""
        return self._requests[0][0] if self._requests else None

    def earliest_deadline(self) -> float:
        """Returns the earliest deadline in the queue; infinite if there is none."""
        if not self._num_with_deadline:
            return np.inf
        return min(request.deadline for request, _ in self._requests)
