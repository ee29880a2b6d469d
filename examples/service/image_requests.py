"""Parsing of requests: the image and the deadline, or the reason for refusal."""

import contextlib
import math

import numpy as np
from starlette.requests import Request

from imta_jax.data import EvaluationTransform
from imta_jax.data.decoding.header import read_header
from imta_jax.data.decoding.refusal import Refusal, RefusedImageError
from imta_jax.inference.image_files import decode_contents

_STATUS = {
    Refusal.EMPTY: 400,
    Refusal.TOO_LARGE: 413,
    Refusal.OTHER_FORMAT: 415,
    Refusal.JPEG_CODING: 415,
    Refusal.JPEG_COMPONENTS: 415,
    Refusal.JPEG_SCANS: 415,
}  # others: 422


class RefusedRequestError(Exception):
    """A request that gets an error status. `reason` is a name for programs."""

    def __init__(self, status: int, reason: str, message: str, retry_seconds: int | None = None):
        super().__init__(message)
        self.status, self.reason, self.retry_seconds = status, reason, retry_seconds


def requested_deadline_ms(request: Request) -> float | None:
    """Milliseconds from the header X-Deadline-Ms or the parameter deadline_ms; None for none."""
    text = request.headers.get("x-deadline-ms") or request.query_params.get("deadline_ms")
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    message = f"the deadline is {text!r}; expected milliseconds above 0"
    raise RefusedRequestError(400, "deadline", message)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request, if it is not larger than `max_bytes`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise RefusedRequestError(413, "body_too_large", f"expected at most {max_bytes} bytes")
    return bytes(body)


def decode(contents: bytes, transform: EvaluationTransform, max_pixels: int) -> np.ndarray:
    """The network's input for an image file of at most `max_pixels`."""
    try:
        header = read_header(contents)
        if header.height * header.width > max_pixels:
            raise RefusedImageError(Refusal.TOO_LARGE)
        return decode_contents(contents, transform).pixels
    except RefusedImageError as error:
        status = _STATUS.get(error.refusal, 422)
        raise RefusedRequestError(status, error.refusal.name.lower(), str(error)) from error
    except ValueError as error:
        raise RefusedRequestError(422, "image_size", str(error)) from error
