"""A load generator for HTTP services: requests arrive at given times, whatever the responses.

In a closed loop a slow service gets fewer requests, which hides waiting times. Here the arrivals
are a Poisson process, and latencies count from the planned arrival.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

_TIMEOUT_S = 60.0


@dataclasses.dataclass
class Exchange:
    """One request and its response.

    Attributes:
      identifier: sent as X-Request-Id.
      image: index of the image that was sent.
      sent_at: time on the clock of `time.perf_counter`.
      status: HTTP status; 0 if there was no response.
      milliseconds: latency from the planned arrival to the response.
      response: JSON of the response.
      error: why there was no response.
    """

    identifier: str
    image: int
    sent_at: float = 0.0
    status: int = 0
    milliseconds: float = float("nan")
    response: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


class Client:
    """Sends requests over connections that are kept open; opens one more if all are in use.

    Args:
      port: port of the service, on the loopback address.
    """

    def __init__(self, port: int):
        self.port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, bytes]:
        """Returns the status and the body of the response."""
        connection = await self._connection()
        try:
            status, content, keep = await _send(*connection, method, path, body, headers)
        except BaseException:
            await _close(connection[1])
            raise
        if keep:
            self._idle.append(connection)
        else:
            await _close(connection[1])
        return status, content

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An idle connection that the service has not closed, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            await _close(writer)
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def close(self) -> None:
        """Closes the connections."""
        for _, writer in self._idle:
            await _close(writer)

    async def exchange(
        self, exchange: Exchange, body: bytes, arrival: float, deadline_ms: float | None
    ) -> None:
        """Sends an image and fills in the response."""
        exchange.sent_at = time.perf_counter()
        headers = f"x-request-id: {exchange.identifier}\r\n"
        if deadline_ms is not None:
            headers += f"x-deadline-ms: {deadline_ms}\r\n"
        try:
            sending = self.request("POST", "/classify", body, headers)
            exchange.status, content = await asyncio.wait_for(sending, _TIMEOUT_S)
            exchange.response = json.loads(content)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            exchange.error = repr(error)
        exchange.milliseconds = float(1e3 * (time.perf_counter() - arrival))


async def _send(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    path: str,
    body: bytes,
    headers: str,
) -> tuple[int, bytes, bool]:
    """Status and body of the response, and whether the connection may be used again."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    writer.write(f"{head}{headers}\r\n".encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    content = await reader.readexactly(int(fields["content-length"]))
    return int(lines[0].split()[1]), content, fields.get("connection") != "close"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def open_loop(
    client: Client,
    bodies: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    deadline_ms: float | None,
    seed: int,
) -> list[Exchange]:
    """Sends images at random times; every second one has a deadline.

    Args:
      client: client of the service.
      bodies: contents of image files, sent in turn.
      rate: mean requests per second.
      seconds: duration of the arrivals.
      deadline_ms: deadline of every second request; None for none.
      seed: seed of the arrival times, and part of the identifiers.
    """
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, int(rate * seconds))
    arrivals = time.perf_counter() + np.cumsum(gaps)
    exchanges, tasks = [], []
    for i, arrival in enumerate(arrivals):
        await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
        exchange = Exchange(f"{seed}-{i}", i % len(bodies))
        body, deadline = bodies[exchange.image], deadline_ms if i % 2 else None
        sending = client.exchange(exchange, body, arrival, deadline)
        exchanges.append(exchange)
        tasks.append(asyncio.create_task(sending))
    await asyncio.gather(*tasks)
    return exchanges


def summarize(exchanges: Sequence[Exchange], labels: np.ndarray) -> dict[str, Any]:
    """Counts and latency quantiles.

    Args:
      exchanges: requests and responses of one run.
      labels: [E, N], label of each image at each exit.

    Returns:
      `lost` are requests without a response, `doubled` responses with the identifier of another
      request, and `wrong` responses with another label than the network gives at their exit.
    """
    completed = [e for e in exchanges if e.status == 200]
    shed = Counter(e.response.get("error") for e in exchanges if e.status == 503)
    milliseconds = [e.milliseconds for e in completed] or [float("nan")]
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
    answered = [e for e in exchanges if e.response.get("id") == e.identifier]
    exits = Counter(e.response["exit"] for e in completed)
    late = sum(not e.response["in_time"] for e in completed)
    wrong = [e for e in completed if labels[e.response["exit"] - 1, e.image] != e.response["label"]]
    return {
        "sent": len(exchanges),
        "completed": len(completed),
        "shed": sum(shed.values()) / len(exchanges),
        "lost": sum(e.status == 0 for e in exchanges),
        "other": sum(e.status not in (0, 200, 503) for e in exchanges),
        "doubled": sum(e.status != 0 for e in exchanges) - len(answered),
        "wrong": len(wrong),
        "late": late / max(len(completed), 1),
        "ms": {"p50": float(p50), "p90": float(p90), "p99": float(p99)},
        "exit": {str(i + 1): exits[i + 1] for i in range(len(labels))},
        "shed for": dict(shed),
        "errors": dict(Counter(e.error for e in exchanges if e.error)),
    }
