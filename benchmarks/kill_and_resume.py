"""Checks that a run that is killed repeatedly ends bit for bit like an uninterrupted one.

A small run of launch.py is done twice without interruption, as the reference and to check that it
is deterministic. More runs are then killed at random moments and restarted with the same command
until they finish. Network, optimizer, logits and results of each run are compared bit for bit.

    python benchmarks/kill_and_resume.py --out=benchmarks/results/kill_and_resume.json

The seed determines the event and the delay of each kill. The position in the run also depends on
the speed of the machine, so each kill is recorded with what the run was doing at that time.
"""

import collections
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from benchmarks import result_file
from benchmarks.run_comparison import differences, modification_times
from configs import quickstart
from imta_jax.data import load_dataset
from imta_jax.training import EXIT_CODE

KILLS, QUICK_KILLS, SIGTERM_SHARE, SEED = 25, 5, 0.3, 0
LIMIT = 300.0  # seconds; a small run takes less
HELD_OUT, STEPS, BATCH = 24, 5, 16
# `published` trains the transfer layers and updates BatchNorm statistics: more state to restore.
OPTIONS = f"""
    --config=configs/quickstart.py:published --config.checkpoint.every_steps=2
    --config.model.num_exits=2 --config.model.channels=4 --config.model.growth_rate=2
    --config.model.growth_factors=(1,2) --config.model.bottleneck_factors=(1,2)
    --config.data.pipeline=numpy --config.data.validation_examples={HELD_OUT}
    --config.phase_one.total_epochs=3 --config.phase_one.batch_size={BATCH}
    --config.phase_two.total_epochs=2 --config.phase_two.batch_size={BATCH}
    --config.evaluation.batch_size=20 --config.evaluation.reported_budgets=(0.7,0.9)
"""
STAGES = ("start-up", "phase I", "between the phases", "phase II", "evaluation", "report")
# Stage -> pattern of the log line at its start.
STAGE_STARTS = {
    1: r"phase_one: \d+ epochs of",
    2: r"phase_one: already done|phase_one epoch (\d+)/\1:",
    3: r"phase_two: \d+ epochs of",
    4: r"phase_two: already done|phase_two epoch (\d+)/\1:|evaluation: ",
}
WORK_STARTS = r"\d+ epochs of|evaluation: |evaluate: already done"
UNFINISHED = "*.orbax-checkpoint-tmp*"
Row = dict[str, Any]


def write_images(path: Path) -> None:
    """Writes some of the package's images as an .npz."""
    splits, arrays = load_dataset(quickstart.get_config().data).splits, {}
    for name, count in (("train", HELD_OUT + STEPS * BATCH), ("test", 60)):
        arrays |= {f"{name}_{f}": getattr(splits[name], f)[:count] for f in ("images", "labels")}
    np.savez(path, **arrays)


def command(images: Path, workdir: Path, cache: Path) -> Row:
    """Arguments of Popen for the small run on one CPU device."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    # Cache all programs, so that only the first start compiles.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    arguments = [sys.executable, "launch.py", *OPTIONS.split(), f"--workdir={workdir}"]
    arguments += [f"--compilation_cache={cache}", f"--config.data.source={images}"]
    return {"args": arguments, "cwd": Path(__file__).parent.parent, "env": environment}


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after a log line, a file or the start; and the signal."""

    stage: int
    delay: float  # seconds; the maximum before drawing
    line: str = ""
    path: str = ""
    kill_signal: signal.Signals | None = None  # None before drawing


def _of_phase(stage: int, phase: str, epochs: int) -> list[Moment]:
    return [
        Moment(stage, 2.0, line=rf"{phase}: \d+ epochs of"),
        Moment(stage, 1.0, line=rf"{phase} epoch \d+/"),
        Moment(stage, 0.9, path=f"{phase}/partial/{epochs * STEPS - 1}.*"),  # the phase's end
        Moment(stage, 0.5, path=f"{phase}/partial/{UNFINISHED}"),
        Moment(stage, 0.6, path=f"{phase}/{UNFINISHED}"),
        Moment(
            stage, 0.02, path=f"{phase}/*/commit_success.txt"
        ),  # when it is complete, older checkpoints are deleted
    ]


# (Number of moments that a run gets, candidates).
MOMENTS = (
    # SIGTERM during the save before the last step: the run stops after the last step of the epoch.
    (
        1,
        [Moment(1, 0.05, path=f"phase_one/partial/*4{UNFINISHED[1:]}", kill_signal=signal.SIGTERM)],
    ),
    (2, _of_phase(1, "phase_one", epochs=3)),
    (1, [Moment(2, 1.0, line=r"phase_one epoch (\d+)/\1:")]),
    (2, _of_phase(3, "phase_two", epochs=2)),
    (1, [Moment(4, 1.5, line=STAGE_STARTS[4]), Moment(4, 0.5, path="evaluation/*")]),
    (1, [Moment(4, 0.02, path=f"evaluation/{name}.npz") for name in ("logits_test", "gallery")]),
    (1, [Moment(5, 1.5, path="results.json"), Moment(5, 0.1, path="report/*")]),
)


def draw_moments(rng: np.random.Generator, most: int, run_seconds: float) -> list[Moment]:
    """At most `most` moments in the order of the run, which takes `run_seconds` uninterrupted."""
    drawn = [
        m
        for n, candidates in MOMENTS
        for m in rng.choice(np.array(candidates, object), n, replace=False)
    ]
    # Two moments for any start of the program: those of the last stage are never skipped.
    for longest in (0.4 * run_seconds, run_seconds):
        drawn.insert(rng.integers(len(drawn) + 1), Moment(len(STAGES) - 1, longest))
    for i, moment in enumerate(drawn):
        kill_signal = signal.SIGTERM if rng.random() < SIGTERM_SHARE else signal.SIGKILL
        delay, kill_signal = rng.uniform(0, moment.delay), moment.kill_signal or kill_signal
        drawn[i] = dataclasses.replace(moment, delay=delay, kill_signal=kill_signal)
    return [drawn[i] for i in sorted(rng.permutation(len(drawn))[:most])]


def stage_of(log: str, workdir: Path) -> int:
    """The last stage that a run reached, from the log of one start and the run's folder."""
    if (workdir / "results.json").exists():
        return STAGES.index("report")
    return max([0, *(stage for stage, pattern in STAGE_STARTS.items() if re.search(pattern, log))])


def has_handler(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal (Linux only)."""
    status = Path(f"/proc/{process}/status")
    match = re.search(r"SigCgt:\s*(\w+)", status.read_text()) if status.exists() else None
    return match is not None and bool(int(match[1], 16) >> (number - 1) & 1)


class Start:
    """One start of the command; its log is read while it runs."""

    def __init__(self, popen: Row, workdir: Path):
        self.workdir, self._log = workdir, workdir.with_suffix(".log")
        self._before, self._ends = modification_times(workdir, "**/*"), time.monotonic() + LIMIT
        with self._log.open("a") as log:
            self._skip = log.tell()
            self.process = subprocess.Popen(**popen, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        """The log of this start so far."""
        return self._log.read_bytes()[self._skip :].decode(errors="replace")

    def new(self, pattern: str) -> list[str]:
        """Files that match a pattern and are new or changed since the start."""
        times = modification_times(self.workdir, pattern)
        return [name for name, stamp in times.items() if stamp != self._before.get(name)]

    def has_occurred(self, moment: Moment) -> bool:
        """Whether the log line and the file that a moment waits for exist."""
        logged = re.search(moment.line, self.log) is not None  # "" matches any log
        return logged and (not moment.path or bool(self.new(moment.path)))

    def finish(self) -> int:
        """Waits for the process and returns its exit code; kills it at the time limit."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(max(1.0, self._ends - time.monotonic()))
        self.process.kill()
        return self.process.wait()

    def state(self) -> Row:
        """The stage, the step and the files being written, from the log and the folder."""
        stage = stage_of(self.log, self.workdir) if re.search(WORK_STARTS, self.log) else 0
        patterns = (f"phase_*/{UNFINISHED}", f"phase_*/partial/{UNFINISHED}", "**/*.partial")
        writing = [name for pattern in patterns for name in self.new(pattern)]
        saving = ", a save" if any(Path(name).match(UNFINISHED) for name in writing) else ""
        row = {"place": STAGES[stage] + saving, "writing": " ".join(writing)}
        if stage not in (1, 3):
            return row
        names = modification_times(
            self.workdir / f"phase_{'one' if stage == 1 else 'two'}", "partial/[0-9]*"
        )
        step = max([0, *(int(re.search(r"\d+", name)[0]) for name in names)])
        return row | {"epoch": max(step - 1, 0) // STEPS + 1, "step": step}  # The newest save.

    def kill(self, kill_signal: signal.Signals) -> Row | None:
        """Sends a signal and returns a row about it; None if the run had ended."""
        state = self.state()
        caught = kill_signal == signal.SIGTERM and has_handler(self.process.pid, kill_signal)
        self.process.send_signal(kill_signal)
        code = self.finish()
        if kill_signal == signal.SIGKILL:  # the exact state: a killed process writes nothing
            state = self.state()
        if code == 0 and not caught:
            return None
        expected = EXIT_CODE if caught else -kill_signal
        row = {"signal": kill_signal.name, "exit_code": code, "as_expected": code == expected}
        return state | row

    def kill_at_next(self, moments: collections.deque[Moment]) -> Row | None:
        """Kills at the next moment that occurs; None if the run ends first."""
        due = None
        while self.process.poll() is None and time.monotonic() < self._ends:
            while moments and moments[0].stage < stage_of(self.log, self.workdir):
                moments.popleft()  # the run has passed it
                due = None
            if moments and due is None and self.has_occurred(moments[0]):
                due = time.monotonic() + moments[0].delay
            if due is not None and time.monotonic() >= due:
                return self.kill(moments.popleft().kill_signal)
            time.sleep(0.002)
        return None


def run_killed(popen: Row, workdir: Path, moments: list[Moment]) -> tuple[list[Row], list[str]]:
    """Restarts a run until it ends by itself; returns rows of its kills, and its problems."""
    kills, problems, left, saved = [], [], collections.deque(moments), None
    while True:
        start = Start(popen, workdir)
        kill, code = start.kill_at_next(left), start.finish()
        if saved and saved[2] not in start.log and f"{saved[1]} epoch" in start.log:
            problems.append(f"logged as saved, but not resumed from: {saved[0]}")
        saved = re.search(r"(phase_\w+) stopped at (step \d+ of epoch \d+), saved", start.log)
        if kill is None:
            break
        kills.append(kill)
        if not kill["as_expected"]:
            problems.append(f"exit code {code} after {kill['signal']} in {kill['place']}")
    if code != 0:
        last = " ".join(start.log.splitlines()[-1:])
        problems.append(f"does not resume, exit code {code}: {last}")
    return kills, problems


def one_run(root: Path, name: str, moments: list[Moment]) -> tuple[Row, list[Row]]:
    """Does a run in `root/name` and compares it with `root/reference`; its row, and its kills'."""
    workdir, began = root / name, time.monotonic()
    popen = command(root / "images.npz", workdir, root / "cache")
    kills, problems = run_killed(popen, workdir, moments)
    different = differences(workdir, root / "reference")
    text = " / ".join(problems + different[:9]).replace(str(root), "...")
    row = {"part": "runs", "run": name, "kills": len(kills), "equal": not different}
    row |= {"seconds": round(time.monotonic() - began, 1), "problems": text}
    print(*row.values(), flush=True)
    return row, [{"part": "kills", "run": name, **kill, "equal": not different} for kill in kills]


def check(root: Path, num_kills: int, seed: int = SEED, control: bool = True) -> Row:
    """Does all runs in folders of `root`; returns the rows and the summary.

    Args:
      root: a new folder.
      num_kills: number of kills.
      seed: seed of the random moments.
      control: do the uninterrupted run twice, to check that it is deterministic.
    """
    write_images(root / "images.npz")
    names = ("reference", "again")[: 1 + control]
    uninterrupted = [one_run(root, name, [])[0] for name in names]
    runs, kills = [], []
    # A run may end before its moments occur.
    while len(kills) < num_kills and len(runs) < num_kills:
        rng = np.random.default_rng((seed, len(runs)))
        moments = draw_moments(rng, num_kills - len(kills), uninterrupted[-1]["seconds"])
        row, kills_of_run = one_run(root, f"run_{len(runs) + 1}", moments)
        runs, kills = [*runs, row], kills + kills_of_run
    frame = pd.DataFrame(kills)
    tally = pd.crosstab(frame["place"], frame["signal"])
    tally["all_equal"] = frame.groupby("place")["equal"].all()
    places = [{"part": "where", **row} for row in tally.reset_index().to_dict("records")]
    summary = {"kills": len(kills), "runs": len(runs)}
    summary["runs_bit_for_bit_equal"] = sum(row["equal"] for row in runs)
    summary["problems"] = sum(bool(row["problems"]) for row in uninterrupted + runs)
    summary["kills_by_place"] = frame["place"].value_counts().to_dict()
    targets = {"kills": num_kills, "runs_bit_for_bit_equal": len(runs), "problems": 0}
    rows = [*kills, *uninterrupted, *runs, *places]
    return {"seeds": [seed], "rows": rows, "summary": summary, "targets": targets}


def main(argv: Sequence[str] | None = None) -> None:
    """Does the runs and writes the result; exits with status 1 after a problem."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument(
        "--kills", type=int, help=f"number of kills; default {KILLS}, with --quick {QUICK_KILLS}"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    flags = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # as in the runs
    root = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    kills = flags.kills or (QUICK_KILLS if flags.quick else KILLS)
    result = check(root, kills, flags.seed)
    result_file.write_result(flags.out, (jax, flax, np, ocp), result)
    if result["summary"]["problems"] or result["summary"]["kills"] < kills:
        sys.exit(f"there are problems or too few kills; folders and logs are kept in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
