"""Measures one GPU in 15 minutes: steps against PyTorch, the early-exit engine, and the planner.

    python benchmarks/gpu_session.py --out=gpu_session.json
    python benchmarks/gpu_session.py --out=tried.json --device=cpu --quick

Each job runs in its own process, has a limit of its own, and appends its rows to `OUT.jsonl` at
once, so that nothing is lost when the session ends early. The same command continues: jobs that are
done are not repeated. Jobs are ordered by importance.

Neither TensorFlow nor ml-collections is needed. PyTorch is measured if it is installed. Contenders
do not take turns, unlike in `train_step.py`: use it on a machine without other load.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import ml_collections_stand_in

ml_collections_stand_in.install_if_missing()

from benchmarks import result_file  # noqa: E402
from benchmarks.gpu_jobs import JOBS, Settings  # noqa: E402
from imta_jax.runtime.json_files import append_json_line, read_json_lines  # noqa: E402

SESSION_MINUTES = 13.0  # 2 of the 15 minutes start the machine and copy the result.
_SHORTEST_JOB = 20.0  # seconds
TARGETS = {
    "phase_one_vs_torch": "at least 1",
    "forward_vs_torch": "at least 1.3",
    "min_efficiency_batch256": "at least 0.9 (budgets 30-70%)",
    "planned_vs_measured_step": "0.5 to 2",
    "planned_vs_measured_memory": "0.9 to 1.1",
}
NOTES = {
    "steps": "as in train_step.py, one contender per process, the median of the calls after two",
    "engine": "as in early_exit.py, with the fastest form of the full network",
    "plan": "--mode=plan on this GPU; the measured step is ours on batches in device memory",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One process of the session.

    Attributes:
      name: key of the job in the rows.
      kind: key of `gpu_jobs.JOBS`.
      settings: arguments of the job.
      limit: seconds after which it is stopped.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    limit: float


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """All jobs in the order in which they run."""
    cuda, quick = arguments.device == "cuda", arguments.quick
    sizes = (1, 8) if quick else (256, 1, 1024, 4096)
    steps = list(_step_jobs(cuda, quick))
    engine = [
        Job(f"engine, {size}", "engine", {"batch_size": size, "quick": quick}, 150.0)
        for size in sizes
    ]
    plans = [Job("plan", "plan", {"batch_size": 256, "precision": "tensorfloat32"}, 240.0)]
    ordered = [*steps[:5], *engine[:1], *(plans if cuda else []), *engine[1:], *steps[5:]]
    return [dataclasses.replace(job, limit=900.0) for job in ordered] if not cuda else ordered


def _step_jobs(cuda: bool, quick: bool) -> Iterator[Job]:
    """Contenders of the first case, ours first, then those of the other precisions."""
    modes = [("ours", "batches"), ("pytorch", "eager, channels last"), ("ours", "resident")]
    modes += [("pytorch", "CUDA graphs"), ("pytorch", "compiled, channels last")]
    if not cuda:
        modes = modes[:2]
    for precision in ("tensorfloat32", "bfloat16") if cuda else ("float32",):
        for framework, mode in modes:
            case = {"batch_size": 8 if quick else 256, "precision": precision}
            settings = case | {"framework": framework, "mode": mode}
            settings |= {"calls": 2 if quick else 9, "quick": quick}
            yield Job(f"steps, {precision}, {framework}, {mode}", "steps", settings, 150.0)


def run_session(jobs: Sequence[Job], path: Path, arguments: argparse.Namespace) -> None:
    """Runs the jobs that are not done, until the time of the session is over."""
    end = time.monotonic() + 60 * arguments.minutes
    done = {row["job"] for row in read_json_lines(path) if row["part"] == "jobs" and row["done"]}
    for job in jobs:
        left = end - time.monotonic()
        if job.name in done:
            continue
        if left < _SHORTEST_JOB:
            print(f"{job.name}: not started, {left:.0f} s left")
            continue
        start = time.monotonic()
        problem = run_job(job, path, arguments, min(job.limit, left))
        seconds = round(time.monotonic() - start, 1)
        print(f"{job.name}: {problem or 'done'}, {seconds:.0f} s", flush=True)
        row = {"part": "jobs", "job": job.name, "done": not problem, "problem": problem}
        append_json_line(path, row | {"seconds": seconds})


def run_job(job: Job, path: Path, arguments: argparse.Namespace, limit: float) -> str:
    """Runs a job in a process group of its own; returns why it did not end well, or ""."""
    command = [sys.executable, __file__, f"--out={arguments.out}", f"--device={arguments.device}"]
    command += [f"--job={json.dumps(dataclasses.asdict(job))}"]
    log = path.with_suffix(f".{job.name.replace(' ', '').replace(',', '_')}.log")
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            _end_group(process)
    lines = log.read_text(errors="replace").strip().splitlines()
    return "" if status == 0 else f"status {status}: {lines[-1][:200] if lines else ''}"


def _end_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def work(job: Mapping[str, Any], path: Path, device: str) -> None:
    """The process of a job: appends each row when it is found."""
    settings = Settings(device=device, folder=path.parent, stem=path.stem, **job["settings"])
    for row in JOBS[job["kind"]](settings):
        append_json_line(path, {"job": job["name"], **row})


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Headline ratios of the rows that there are."""
    rows = list(rows)
    steps = [row for row in rows if row["part"] == "steps"]
    values: dict[str, Any] = {}
    for precision in dict.fromkeys(row["precision"] for row in steps):
        for kind in ("phase_one", "forward"):
            least: dict[str, float] = {}
            for row in steps:
                if (row["precision"], row["kind"]) == (precision, kind):
                    framework = row["framework"]
                    least[framework] = min(row["ms"], least.get(framework, row["ms"]))
            if len(least) == 2:
                name = f"{kind}_vs_torch ({precision})"
                values[name] = round(least["pytorch"] / least["ours"], 3)
    for size in dict.fromkeys(row["batch_size"] for row in rows if row["part"] == "throughput"):
        efficiencies = [
            row["efficiency"]["median"]
            for row in rows
            if row["part"] == "throughput"
            and row["batch_size"] == size
            and 0.3 <= row["budget"] <= 0.7
        ]
        values[f"min_efficiency_batch{size}"] = min(efficiencies)
    return values | _planned(rows, steps) | _differences(steps)


def _differences(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Largest difference of first logits and losses between contenders, by precision."""
    largest: dict[str, float] = {}
    for row in steps:
        first = next(
            step["first"]
            for step in steps
            if all(step[name] == row[name] for name in ("kind", "precision", "batch_size"))
        )
        pairs = zip(row["first"], first, strict=True)
        difference = max(abs(a - b) for a, b in pairs) / max(map(abs, first))
        name = f"largest_difference ({row['precision']})"
        largest[name] = max(largest.get(name, 0.0), float(f"{difference:.2g}"))
    return largest


def _planned(rows: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> dict:
    """Predictions of the planner relative to what was measured."""
    ratios = {}
    for plan in (row for row in rows if row["part"] == "plan"):
        earlier = [
            row
            for row in steps
            if (row["framework"], row["mode"], row["kind"]) == ("ours", "batches", "phase_one")
            and all(row[name] == plan[name] for name in ("batch_size", "precision"))
        ]
        if earlier and plan["step_ms"]:
            ratios["planned_vs_measured_step"] = round(plan["step_ms"] / earlier[0]["ms"], 3)
        if earlier and plan["memory_bytes"] and earlier[0]["program_bytes"]:
            ratio = plan["memory_bytes"] / earlier[0]["program_bytes"]
            ratios["planned_vs_measured_memory"] = round(ratio, 3)
    return ratios


def main() -> None:
    """Runs one job, or the session; then prints the tables and writes the result."""
    parser = result_file.argument_parser(__doc__ or "")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=SESSION_MINUTES)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = Path(arguments.out).with_suffix(".jsonl")
    if arguments.job:
        work(arguments.job, path, arguments.device)
        return
    jobs = jobs_of(arguments)
    if importlib.util.find_spec("torch") is None:
        jobs = [job for job in jobs if job.settings.get("framework") != "pytorch"]
    run_session(jobs, path, arguments)
    rows = sorted(read_json_lines(path), key=lambda row: row["part"])
    summary = summarize(rows)
    targets = {name: TARGETS.get(name.partition(" ")[0], "") for name in summary}
    import jax

    content = {"seeds": [0], "notes": NOTES, "rows": rows, "summary": summary, "targets": targets}
    result_file.write_result(arguments.out, (jax,), content)


if __name__ == "__main__":
    main()
