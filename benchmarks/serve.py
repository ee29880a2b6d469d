"""Load test of the web service of `examples/service` on the loopback address.

Requests arrive at given rates, whatever the responses (`open_loop`), while the service is fast,
while a stage is slow, and while it gets SIGTERM. Every response is checked: it has the identifier
of its request, and the label that the network has at the exit that it names. The loads start when
the service has measured its stages; with `--quick`, it does not measure them.

    python benchmarks/serve.py --out=benchmarks/results/serve.json

Each finished load is kept in the file OUT.partial. The same command continues after it.

The network is the pretrained `quickstart`, the images are the embedded test images of
Fashion-MNIST as JPEG files.
"""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks import measurement, open_loop, result_file
from configs.quickstart import get_config
from imta_jax.data import load_dataset
from imta_jax.data.pipeline.evaluation_transform import transform_from_dict
from imta_jax.evaluation import exit_costs, operating_points
from imta_jax.inference import AdaptiveClassifier, export_classifier
from imta_jax.inference.image_files import decode_contents
from imta_jax.pretrained import load_pretrained
from imta_jax.runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
NUM_IMAGES, SEED = 500, 0
TARGETS = {"lost": 0, "doubled": 0, "wrong": 0, "incomplete_at_sigterm": 0}
_START_S = 600


def export_and_images(folder: Path) -> tuple[list[bytes], np.ndarray]:
    """Exports the network; returns JPEG files and their label at each exit, [E, N]."""
    classifier, meta, results = load_pretrained("quickstart")
    transform = transform_from_dict(
        meta["evaluation_transform"], tuple(meta["image_shape"]), version=2
    )
    export_classifier(
        classifier,
        folder,
        points=operating_points(results["budget_curve"], exit_costs(classifier).macs[-1]),
        class_names=meta["class_names"],
        mean=meta["mean"],
        std=meta["std"],
        preprocessing=transform,
        platforms=("cpu",),
    )
    bodies = []
    top, left = transform.padding[0][0], transform.padding[1][0]
    height, width = transform.source_size
    for image in load_dataset(get_config().data).splits["test"].images[:NUM_IMAGES]:
        buffer = io.BytesIO()
        cropped = np.asarray(image)[top : top + height, left : left + width, 0]
        Image.fromarray(cropped).save(buffer, "JPEG", quality=95)
        bodies.append(buffer.getvalue())
    pixels = np.stack([decode_contents(body, transform).pixels for body in bodies])
    never = [2.0] * classifier.num_exits
    adaptive = AdaptiveClassifier(classifier, never, transform=transform)
    return bodies, adaptive.logits(pixels).argmax(axis=-1)


def free_port() -> int:
    """A port that no program uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def wait_until_ready(client: open_loop.Client, process: subprocess.Popen[bytes]) -> float:
    """Waits for /ready; returns the seconds."""
    start = time.perf_counter()
    while time.perf_counter() < start + _START_S and process.poll() is None:
        try:
            if (await client.request("GET", "/ready"))[0] == 200:
                return time.perf_counter() - start
        except OSError:
            pass  # not listening yet
        await asyncio.sleep(0.2)
    raise SystemExit(f"the service was not ready after {_START_S} s, or ended")


async def wait_until_warm(client: open_loop.Client, process: subprocess.Popen[bytes]) -> float:
    """Waits until the stages are measured and compiled; returns the seconds."""
    start = time.perf_counter()
    while time.perf_counter() < start + _START_S and process.poll() is None:
        if b"imta_warm 1" in (await client.request("GET", "/metrics"))[1]:
            return time.perf_counter() - start
        await asyncio.sleep(0.5)
    raise SystemExit(f"the service had not measured its stages after {_START_S} s, or ended")


class FinishedLoads:
    """The rows of finished loads, in a file, so that an interrupted run continues.

    Args:
      out: result file of the benchmark.
      options: the options that all rows depend on.
    """

    def __init__(self, out: Path, options: dict[str, Any]):
        self._path, self._options = out.with_name(f"{out.name}.partial"), options
        self.rows: list[dict[str, Any]] = []
        if self._path.exists():
            stored = json.loads(self._path.read_text())
            self.rows = stored["rows"] if stored["options"] == options else []

    def find(self, part: str, rate: float) -> dict[str, Any] | None:
        """The row of a load, if it is finished."""
        rows = (row for row in self.rows if (row["part"], row["rate"]) == (part, rate))
        return next(rows, None)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row and writes the file."""
        self.rows.append(row)
        write_json(self._path, {"options": self._options, "rows": self.rows})

    def delete(self) -> None:
        """Deletes the file."""
        self._path.unlink(missing_ok=True)


async def run_load(
    client: open_loop.Client,
    process: subprocess.Popen[bytes],
    bodies: list[bytes],
    labels: np.ndarray,
    options: Any,
    finished: FinishedLoads,
) -> dict[str, float]:
    """Runs the loads that are not finished; returns the counts of the shutdown."""
    phases = [("fast", rate) for rate in options.rates] + [("slow stage", max(options.rates))]
    for seed, (part, rate) in enumerate(phases):
        if part == "slow stage":
            process.send_signal(signal.SIGUSR1)
        if finished.find(part, rate):
            continue
        exchanges = await open_loop.open_loop(
            client,
            bodies,
            rate=rate,
            seconds=options.seconds,
            deadline_ms=options.deadline_ms,
            seed=seed,
        )
        finished.add({"part": part, "rate": rate, **open_loop.summarize(exchanges, labels)})
        await asyncio.sleep(1)
    process.send_signal(signal.SIGUSR1)
    return await terminate_under_load(client, process, bodies, min(options.rates))


async def terminate_under_load(
    client: open_loop.Client, process: subprocess.Popen[bytes], bodies: list[bytes], rate: float
) -> dict[str, float]:
    """Sends SIGTERM in the middle of a load; counts requests sent before it without a response."""
    load = open_loop.open_loop(client, bodies, rate=rate, seconds=2, deadline_ms=None, seed=10_000)
    running = asyncio.create_task(load)
    await asyncio.sleep(1)
    process.send_signal(signal.SIGTERM)
    terminated_at = time.perf_counter()
    exchanges = await running
    before = [e for e in exchanges if e.sent_at < terminated_at - 0.05]
    pending = sum(e.sent_at + e.milliseconds / 1e3 > terminated_at for e in before)
    code = await asyncio.to_thread(process.wait, 60)
    return {
        "sent_before_sigterm": len(before),
        "pending_at_sigterm": pending,
        "incomplete_at_sigterm": sum(e.status == 0 for e in before),
        "exit_code": code,
    }


def main() -> None:
    """Runs the load test, prints it and writes the JSON file."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument("--rates", type=lambda text: [*map(float, text.split(","))])
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--deadline-ms", type=float, default=250, help="of every second request")
    parser.add_argument("--slow-stage-ms", type=float, default=100)
    options = parser.parse_args()
    options.rates = options.rates or ([20, 100] if options.quick else [20, 100, 300, 600])
    options.seconds = options.seconds or (5 if options.quick else 20)
    with tempfile.TemporaryDirectory() as scratch:
        folder, port = Path(scratch) / "export", free_port()
        bodies, labels = export_and_images(folder)
        script = ROOT / "benchmarks" / "slow_service.py"
        measures = "" if options.quick else "measure"
        slow = str(options.slow_stage_ms)
        command = [sys.executable, script, folder, str(port), "1", slow, measures]
        client = open_loop.Client(port)
        settings = {k: v for k, v in vars(options).items() if k != "out"}
        finished = FinishedLoads(options.out, settings)
        with subprocess.Popen(command, cwd=ROOT) as process:
            try:
                work = _measure(client, process, bodies, labels, options, finished)
                summary = asyncio.run(work)
            finally:
                process.kill()
    rows = finished.rows
    totals = {name: sum(row[name] for row in rows) for name in ("lost", "doubled", "wrong")}
    result = {
        "seeds": [SEED],
        "rows": rows,
        "summary": totals | summary,
        "targets": TARGETS,
        "options": settings,
    }
    result_file.write_result(options.out, (np,), result)
    finished.delete()


async def _measure(client: open_loop.Client, process: Any, *arguments: Any) -> dict[str, float]:
    seconds = {"ready_after_s": await wait_until_ready(client, process)}
    seconds["warm_after_s"] = await wait_until_warm(client, process)
    summary = await run_load(client, process, *arguments)
    return summary | seconds | {"generator_gb": measurement.memory_gb("VmRSS")}


if __name__ == "__main__":
    main()
