"""Web service for an exported network: `python -m examples.service.app FOLDER --port=8000`.

POST /classify takes the bytes of a JPEG or PNG and responds with JSON. GET /live, /ready and
/metrics are for a supervisor. docs/guides/service.md describes the service.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio.to_thread
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from examples.service.admission import Admission
from examples.service.image_requests import (
    RefusedRequestError,
    decode,
    read_body,
    requested_deadline_ms,
)
from examples.service.metrics import Metrics
from imta_jax.inference import (
    AdaptiveStream,
    Audit,
    DriftMonitor,
    ExportedClassifier,
    StreamMonitor,
    StreamPredictions,
    load_exported,
)
from imta_jax.inference.arguments import few_batch_sizes

_log = logging.getLogger("imta_jax.service")
_AUDIT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the service.

    Attributes:
      budget: see `ExportedClassifier.adaptive`.
      max_in_flight: requests between admission and response; more are shed.
      max_batch_size: largest batch size of the network.
      max_bytes: largest number of bytes of a request's body.
      max_pixels: largest number of pixels of an image, checked before it is decoded.
      measure: whether to measure the stages, in the background, while the full network responds to
        the first requests. Without it, times are estimated and all programs compiled first.
      num_validation: images on which the exit fractions of the export were measured.
      audit_share: fraction of the images that also run to the last exit.
    """

    budget: float = 0.5
    max_in_flight: int = 256
    max_batch_size: int = 32
    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    measure: bool = True
    num_validation: int | None = None
    audit_share: float = 0.01


class Service:
    """The network, its stream and its monitors, and the handlers of requests.

    Args:
      load: returns the exported network; called in a thread, after the server has started.
      settings: settings of the service.
    """

    def __init__(self, load: Callable[[], ExportedClassifier], settings: Settings):
        self._load, self.settings = load, settings
        self.metrics = Metrics()
        self.admission = Admission(settings.max_in_flight)
        self.stream: AdaptiveStream | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Loads the network and opens the stream, then audits until `stop` is called."""
        try:
            self.exported = self._load()
            limit = self.settings.max_batch_size
            arguments = few_batch_sizes(limit, num_workers=1)
            adaptive = self.exported.adaptive(self.settings.budget, **arguments)
            point = self.exported.point_for(self.settings.budget)
            fractions = np.asarray(point.validation_exit_fractions)
            self.admission.set_profile(adaptive.profile, fractions)
            self.drift = DriftMonitor(fractions, num_validation=self.settings.num_validation)
            self.audit = Audit(adaptive, share=self.settings.audit_share)
            observer = StreamMonitor(self.drift, self.audit)
            self.stream = AdaptiveStream(
                adaptive,
                max_waiting=self.settings.max_in_flight,
                observer=observer,
                wait=not self.settings.measure,
            )
            _log.info("ready: %d exits, budget %g", len(fractions), self.settings.budget)
            is_warm = False
            while not self._stopping.wait(_AUDIT_SECONDS):
                if self.stream.is_warm and not is_warm:
                    is_warm = True
                    self.admission.set_profile(adaptive.profile, fractions)
                    _log.info("the stages are measured and compiled")
                if is_warm:
                    self.audit.run()
        except Exception:
            _log.exception("the service cannot classify")

    def stop(self) -> None:
        """Completes the accepted images and closes the stream."""
        self._stopping.set()
        if self.stream is not None:
            self.stream.close()

    async def classify(self, request: Request) -> Response:
        """POST /classify: label, confidence and exit of an image."""
        start = time.perf_counter()
        identifier = request.headers.get("x-request-id") or uuid.uuid4().hex
        try:
            content, status, headers = await self._classification(request, start), 200, {}
        except RefusedRequestError as error:
            shed = error.retry_seconds is not None
            (self.metrics.shed if shed else self.metrics.refused)[error.reason] += 1
            content, status = {"error": error.reason, "message": str(error)}, error.status
            headers = {"retry-after": str(error.retry_seconds)} if shed else {}
        self.metrics.requests[str(status)] += 1
        headers["x-request-id"] = identifier
        return JSONResponse({"id": identifier, **content}, status, headers)

    async def _classification(self, request: Request, start: float) -> dict[str, object]:
        deadline_ms = requested_deadline_ms(request)
        if self.stream is None or self._stopping.is_set():
            raise RefusedRequestError(503, "not_ready", "the network is not loaded", 5)
        if reason := self.admission.reason_to_shed(deadline_ms):
            raise self._shed(reason)
        with self.admission.request() as expected_ms:
            contents = await read_body(request, self.settings.max_bytes)
            limit = self.settings.max_pixels
            transform = self.exported.transform
            pixels = await anyio.to_thread.run_sync(decode, contents, transform, limit)
            left_ms = None
            if deadline_ms is not None:
                left_ms = deadline_ms - 1e3 * (time.perf_counter() - start)
                if left_ms <= 0:
                    raise self._shed("deadline")
            try:
                future = self.stream.submit(pixels, deadline_ms=left_ms, timeout_s=0)
            except queue.Full as error:
                raise self._shed("queue_full") from error
            predictions: StreamPredictions = await asyncio.wrap_future(future)
        seconds = time.perf_counter() - start
        self.admission.record(expected_ms, 1e3 * seconds)
        in_time = deadline_ms is None or 1e3 * seconds <= deadline_ms
        exit_index, label = int(predictions.exit[0]), int(predictions.labels[0])
        self.metrics.classified(exit_index, seconds, in_time)
        return {
            "label": label,
            "class": self.exported.class_names[label],
            "confidence": round(float(predictions.confidence[0]), 6),
            "exit": exit_index + 1,
            "milliseconds": round(1e3 * seconds, 3),
            "in_time": in_time,
        }

    def _shed(self, reason: str) -> RefusedRequestError:
        seconds = max(1, math.ceil(self.admission.expected_ms() / 1e3))
        message = f"{self.admission.in_flight} requests are in flight; send it again later"
        return RefusedRequestError(503, reason, message, seconds)

    async def live(self, request: Request) -> Response:
        """GET /live: whether the process runs."""
        return PlainTextResponse("live\n")

    async def ready(self, request: Request) -> Response:
        """GET /ready: whether images are accepted."""
        ready = self.stream is not None and not self._stopping.is_set()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics, in the Prometheus text format."""
        gauges = {"in_flight": self.admission.in_flight, "ready": self.stream is not None}
        if self.stream is not None:
            drift, audit = self.drift.status(), self.audit.report()
            gauges |= {
                "warm": self.stream.is_warm,
                "queue_length": self.stream.statistics().waiting,
                "drift_alarm": drift.alarm,
                "drift_alarms": drift.num_alarms,
                "drift_windows": drift.num_windows,
                "drift_p_value": drift.p_value,
                "audited": audit.audited,
                "audit_agreement": audit.agreement,
            }
        text = self.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def create_app(load: Callable[[], ExportedClassifier], settings: Settings) -> Starlette:
    """Makes the application; `app.state.service` is its `Service`."""
    service = Service(load, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        thread = threading.Thread(target=service.start, name="service", daemon=True)
        thread.start()
        yield
        await anyio.to_thread.run_sync(service.stop)

    routes = [
        Route("/classify", service.classify, methods=["POST"]),
        Route("/live", service.live),
        Route("/ready", service.ready),
        Route("/metrics", service.show_metrics),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.service = service
    return app


def main() -> None:
    """Serves an exported folder until SIGTERM or Ctrl-C; accepted requests are completed."""
    parser = argparse.ArgumentParser(description="Serves an exported network over HTTP.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    for field in dataclasses.fields(Settings):
        if field.name != "measure":
            kind = int if field.name == "num_validation" else type(field.default)
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, default=field.default)
    parser.add_argument(
        "--trust-compiled",
        action="store_true",
        help="use compiled programs of the folder, which are machine code",
    )
    arguments = vars(parser.parse_args())
    names = ("folder", "host", "port", "trust_compiled")
    folder, host, port, trust = (arguments.pop(name) for name in names)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    app = create_app(lambda: load_exported(folder, trust_compiled=trust), Settings(**arguments))
    uvicorn.run(app, host=host, port=port, access_log=False, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
