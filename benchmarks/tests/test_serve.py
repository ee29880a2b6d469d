"""The load generator: every request is counted once, and wrong responses are found."""

import asyncio
import json

import numpy as np
import pytest

from benchmarks import open_loop

LABELS = np.array([[0, 1], [1, 1]])  # [exit, image]


async def run_against(response_to, rate=400.0, seconds=0.25):
    """Sends images to a server that responds with `response_to(identifier)`, or closes for None."""

    handlers = []

    async def serve(reader, writer):
        handlers.append(asyncio.current_task())
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                break
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            response = response_to(fields["x-request-id"])
            if response is None:
                break
            status, content = response
            body = json.dumps(content).encode()
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = open_loop.Client(port)
    load = open_loop.open_loop(
        client, [b"a", b"b"], rate=rate, seconds=seconds, deadline_ms=5.0, seed=3
    )
    exchanges = await load
    await client.close()
    server.close()
    await server.wait_closed()
    await asyncio.gather(*handlers)
    return open_loop.summarize(exchanges, LABELS)


def right(identifier):
    image = int(identifier.split("-")[1]) % 2
    return {"id": identifier, "label": int(LABELS[1, image]), "exit": 2, "in_time": True}


def test_right_responses_are_counted():
    summary = asyncio.run(run_against(lambda identifier: (200, right(identifier))))
    assert summary["sent"] == summary["completed"] == 100
    assert summary["exit"] == {"1": 0, "2": 100}
    assert not (summary["lost"] or summary["doubled"] or summary["wrong"] or summary["shed"])
    assert 0 < summary["ms"]["p50"] <= summary["ms"]["p99"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda response: None, "lost"),
        (lambda response: (200, response | {"id": "3-0"}), "doubled"),
        (lambda response: (200, response | {"label": 7}), "wrong"),
        (lambda response: (503, {"id": response["id"], "error": "queue_full"}), "shed"),
    ],
)
def test_each_fault_is_counted(change, name):
    def response_to(identifier):
        every_fifth = int(identifier.split("-")[1]) % 5 == 1
        return change(right(identifier)) if every_fifth else (200, right(identifier))

    summary = asyncio.run(run_against(response_to))
    counts = {key: summary[key] for key in ("lost", "doubled", "wrong")}
    counts["shed"] = round(100 * summary["shed"])
    assert counts == dict.fromkeys(counts, 0) | {name: 20}
