"""Shows that nothing is lost: a run killed again and again ends as one that was left alone.

A small run of launch.py is done twice without interruption: what is right, and is it the same each
time? Then it is killed at random moments and the same command started again until the run ends, as
many runs as the kills take. Every end is compared bit for bit: network, optimiser, logits, results.

    python benchmarks/kill_and_resume.py --out=benchmarks/results/kill_and_resume.json

The seed decides what is waited for and how long; where in the run that falls depends on the
machine's pace, so each kill is told by what was really going on when it came.
"""

import collections
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd

from benchmarks import environment
from configs import quickstart
from imta_jax.data import load_dataset
from imta_jax.training import EXIT_CODE

KILLS, QUICK_KILLS, SIGTERM_SHARE, SEED = 25, 5, 0.3, 0
LIMIT = 300.0  # seconds; no small run takes as long
HELD_OUT, STEPS, BATCH = 24, 5, 16
# `published` trains the transfers and moves the statistics: more state that could get lost.
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
# What the log says when a stage, by its number, is reached.
SIGNS = {
    1: r"phase_one: \d+ epochs of",
    2: r"phase_one: already done|phase_one epoch (\d+)/\1:",
    3: r"phase_two: \d+ epochs of",
    4: r"phase_two: already done|phase_two epoch (\d+)/\1:|evaluation: ",
}
AT_WORK = r"\d+ epochs of|evaluation: |evaluate: already done"
UNFINISHED = "*.orbax-checkpoint-tmp*"
TIMINGS = ("images_per_second", "input_wait_share", "seconds", "finished")
Row = dict[str, Any]


def write_images(path: Path) -> None:
    """Writes a few of the images in the package as an .npz."""
    splits, arrays = load_dataset(quickstart.get_config().data).splits, {}
    for name, count in (("train", HELD_OUT + STEPS * BATCH), ("test", 60)):
        arrays |= {f"{name}_{f}": getattr(splits[name], f)[:count] for f in ("images", "labels")}
    np.savez(path, **arrays)


def command(images: Path, workdir: Path, cache: Path) -> Row:
    """Arguments of Popen for the small run, on one processor device."""
    surroundings = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    # However small a program is, no start but the first shall compile it.
    surroundings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    surroundings["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    arguments = [sys.executable, "launch.py", *OPTIONS.split(), f"--workdir={workdir}"]
    arguments += [f"--compilation_cache={cache}", f"--config.data.source={images}"]
    return {"args": arguments, "cwd": Path(__file__).parent.parent, "env": surroundings}


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: `delay` after a log line or a file (if neither, after the start), and how."""

    stage: int
    delay: float  # seconds; the longest, until it is drawn
    line: str = ""
    path: str = ""
    sent: signal.Signals | None = None  # until it is drawn


def _of_phase(stage: int, phase: str, epochs: int) -> list[Moment]:
    return [
        Moment(stage, 2.0, line=rf"{phase}: \d+ epochs of"),
        Moment(stage, 1.0, line=rf"{phase} epoch \d+/"),
        Moment(stage, 0.9, path=f"{phase}/partial/{epochs * STEPS - 1}.*"),  # the phase's end
        Moment(stage, 0.5, path=f"{phase}/partial/{UNFINISHED}"),
        Moment(stage, 0.6, path=f"{phase}/{UNFINISHED}"),
        Moment(stage, 0.02, path=f"{phase}/*/commit_success.txt"),  # whole: older ones go
    ]


# How many of which moments a run gets.
MOMENTS = (
    # Told to stop while the last step but one is saved, a run stops after the epoch's last.
    (1, [Moment(1, 0.05, path=f"phase_one/partial/*4{UNFINISHED[1:]}", sent=signal.SIGTERM)]),
    (2, _of_phase(1, "phase_one", epochs=3)),
    (1, [Moment(2, 1.0, line=r"phase_one epoch (\d+)/\1:")]),
    (2, _of_phase(3, "phase_two", epochs=2)),
    (1, [Moment(4, 1.5, line=SIGNS[4]), Moment(4, 0.5, path="evaluation/*")]),
    (1, [Moment(4, 0.02, path=f"evaluation/{name}.npz") for name in ("logits_test", "gallery")]),
    (1, [Moment(5, 1.5, path="results.json"), Moment(5, 0.1, path="report/*")]),
)


def draw_moments(rng: np.random.Generator, most: int, run_seconds: float) -> list[Moment]:
    """At most so many moments for a run (left alone, it takes `run_seconds`), as it meets them."""
    drawn = [m for n, of in MOMENTS for m in rng.choice(np.array(of, object), n, replace=False)]
    # Two that fit any start of the program: with the number of the last stage, they are never past.
    for longest in (0.4 * run_seconds, run_seconds):
        drawn.insert(rng.integers(len(drawn) + 1), Moment(len(STAGES) - 1, longest))
    for i, moment in enumerate(drawn):
        sent = signal.SIGTERM if rng.random() < SIGTERM_SHARE else signal.SIGKILL
        delay, sent = rng.uniform(0, moment.delay), moment.sent or sent
        drawn[i] = dataclasses.replace(moment, delay=delay, sent=sent)
    return [drawn[i] for i in sorted(rng.permutation(len(drawn))[:most])]


def stage_of(log: str, workdir: Path) -> int:
    """The last stage that a run has reached, by the log of one start and by the folder."""
    if (workdir / "results.json").exists():
        return STAGES.index("report")
    return max([0, *(stage for stage, sign in SIGNS.items() if re.search(sign, log))])


def catches(process: int, number: int) -> bool:
    """Whether a process handles a signal itself (Linux tells)."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"SigCgt:\s*(\w+)", status.read_text()) if status.exists() else None
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def _stamps(folder: Path, pattern: str) -> dict[str, int]:
    """When what the folder has under a pattern was written."""
    stamps = {}
    with contextlib.suppress(FileNotFoundError):  # it is renamed while it is looked at
        for path in folder.glob(pattern):
            stamps[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return stamps


class Start:
    """One start of the command, whose log is read while it runs."""

    def __init__(self, popen: Row, workdir: Path):
        self.workdir, self._log = workdir, workdir.with_suffix(".log")
        self._before, self._ends = _stamps(workdir, "**/*"), time.monotonic() + LIMIT
        with self._log.open("a") as log:
            self._skip = log.tell()
            self.process = subprocess.Popen(**popen, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        """What this start has said so far."""
        return self._log.read_bytes()[self._skip :].decode(errors="replace")

    def new(self, pattern: str) -> list[str]:
        """What the folder has under a pattern and had not, or not so, before the start."""
        found = _stamps(self.workdir, pattern)
        return [name for name, stamp in found.items() if stamp != self._before.get(name)]

    def has_come(self, moment: Moment) -> bool:
        """Whether what a moment waits for is there."""
        said = re.search(moment.line, self.log) is not None  # "" is found in anything
        return said and (not moment.path or bool(self.new(moment.path)))

    def finish(self) -> int:
        """Waits for the end and returns the exit code; what does not end is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(max(1.0, self._ends - time.monotonic()))
        self.process.kill()
        return self.process.wait()

    def seen(self) -> Row:
        """Where the run is, as log and folder tell."""
        stage = stage_of(self.log, self.workdir) if re.search(AT_WORK, self.log) else 0
        patterns = (f"phase_*/{UNFINISHED}", f"phase_*/partial/{UNFINISHED}", "**/*.partial")
        writing = [name for pattern in patterns for name in self.new(pattern)]
        saving = ", a save" if any(Path(name).match(UNFINISHED) for name in writing) else ""
        row = {"place": STAGES[stage] + saving, "writing": " ".join(writing)}
        if stage not in (1, 3):
            return row
        names = _stamps(self.workdir / f"phase_{'one' if stage == 1 else 'two'}", "partial/[0-9]*")
        step = max([0, *(int(re.search(r"\d+", name)[0]) for name in names)])
        return row | {"epoch": max(step - 1, 0) // STEPS + 1, "step": step}  # by the newest save

    def strike(self, sent: signal.Signals) -> Row | None:
        """Sends a signal and tells where it fell; None where the run ended before it."""
        seen, caught = self.seen(), sent == signal.SIGTERM and catches(self.process.pid, sent)
        self.process.send_signal(sent)
        code = self.finish()
        if sent == signal.SIGKILL:  # the dead do not move: this is the very moment
            seen = self.seen()
        if code == 0 and not caught:
            return None
        expected = EXIT_CODE if caught else -sent
        return seen | {"signal": sent.name, "exit_code": code, "as_expected": code == expected}

    def meet(self, moments: collections.deque[Moment]) -> Row | None:
        """Kills at the next moment that comes; None where the run ends before."""
        due = None
        while self.process.poll() is None and time.monotonic() < self._ends:
            while moments and moments[0].stage < stage_of(self.log, self.workdir):
                moments.popleft()  # it is past
                due = None
            if moments and due is None and self.has_come(moments[0]):
                due = time.monotonic() + moments[0].delay
            if due is not None and time.monotonic() >= due:
                return self.strike(moments.popleft().sent)
            time.sleep(0.002)
        return None


def run_killed(popen: Row, workdir: Path, moments: list[Moment]) -> tuple[list[Row], list[str]]:
    """Starts, kills and starts again until a run ends by itself; its kills, and what went wrong."""
    kills, problems, left, promise = [], [], collections.deque(moments), None
    while True:
        start = Start(popen, workdir)
        kill, code = start.meet(left), start.finish()
        if promise and promise[2] not in start.log and f"{promise[1]} epoch" in start.log:
            problems.append(f"was told to be saved, and was not: {promise[0]}")
        promise = re.search(r"(phase_\w+) stopped at (step \d+ of epoch \d+), saved", start.log)
        if kill is None:
            break
        kills.append(kill)
        if not kill["as_expected"]:
            problems.append(f"exit code {code} after {kill['signal']} in {kill['place']}")
    if code != 0:
        last = " ".join(start.log.splitlines()[-1:])
        problems.append(f"does not go on, exit code {code}: {last}")
    return kills, problems


def _bits(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(value)
    return str(array.dtype), array.shape, array.tobytes()


def _read_json(text: str) -> Row:
    """An object without what no two runs share."""
    return json.loads(text, object_pairs_hook=lambda p: {k: v for k, v in p if k not in TIMINGS})


def contents(workdir: Path) -> Iterator[tuple[str, Any]]:
    """Names and values of all that a finished run holds and that no interruption may change."""
    for phase in sorted(workdir.glob("phase_*")):
        last = max((p for p in phase.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        for item in (last / "model", last / "progress"):
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(item)
            for name, array in jax.tree_util.tree_leaves_with_path(tree):
                yield f"{item.relative_to(workdir)}{jax.tree_util.keystr(name)}", _bits(array)
        for i, line in enumerate((phase / "metrics.jsonl").read_text().splitlines(), start=1):
            yield f"{phase.name}/metrics.jsonl, row {i}", _read_json(line)
    for field, value in _read_json((workdir / "results.json").read_text()).items():
        yield f"results.json, {field}", value
    for path in sorted(workdir.glob("evaluation/*.npz")):
        with np.load(path) as arrays:
            yield from ((f"evaluation/{path.name}, {name}", _bits(a)) for name, a in arrays.items())
    for name, column in pd.read_parquet(workdir / "evaluation" / "samples.parquet").items():
        yield f"evaluation/samples.parquet, {name}", _bits(column)
    # Beside the report, what is there only if it was left behind.
    for pattern in ("report/*", "**/*.partial", "**/unreadable_*"):
        yield from ((name, "is there") for name in _stamps(workdir, pattern))


def differences(found: Path, expected: Path) -> list[str]:
    """One line for each thing in which a finished run differs from another."""
    try:
        ours, theirs = dict(contents(found)), dict(contents(expected))
    except Exception as error:  # whatever damage does: orbax raises many kinds
        return [f"cannot be read: {error}"]
    lines = [f"missing: {name}" for name in theirs.keys() - ours.keys()]
    lines += [f"should not be there: {name}" for name in ours.keys() - theirs.keys()]
    lines += [f"differs: {n}" for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]]
    return sorted(lines)


def one_run(root: Path, name: str, moments: list[Moment]) -> tuple[Row, list[Row]]:
    """A run in `root/name`, compared with `root/whole`: its row, and those of its kills."""
    workdir, began = root / name, time.monotonic()
    popen = command(root / "images.npz", workdir, root / "cache")
    kills, problems = run_killed(popen, workdir, moments)
    different = differences(workdir, root / "whole")
    told = " / ".join(problems + different[:9]).replace(str(root), "...")
    row = {"part": "runs", "run": name, "kills": len(kills), "equal": not different}
    row |= {"seconds": round(time.monotonic() - began, 1), "problems": told}
    print(*row.values(), flush=True)
    return row, [{"part": "kills", "run": name, **kill, "equal": not different} for kill in kills]


def prove(root: Path, wanted: int, seed: int = SEED, control: bool = True) -> Row:
    """Does the runs in folders of `root`; `control` does the one left alone twice; tallies all."""
    write_images(root / "images.npz")
    alone = [one_run(root, name, [])[0] for name in ("whole", "again")[: 1 + control]]
    runs, kills = [], []
    while len(kills) < wanted and len(runs) < wanted:  # a run may end before its moments come
        rng = np.random.default_rng((seed, len(runs)))
        moments = draw_moments(rng, wanted - len(kills), alone[-1]["seconds"])
        row, found = one_run(root, f"run_{len(runs) + 1}", moments)
        runs, kills = [*runs, row], kills + found
    frame = pd.DataFrame(kills)
    tally = pd.crosstab(frame["place"], frame["signal"])
    tally["all_equal"] = frame.groupby("place")["equal"].all()
    places = [{"part": "where", **row} for row in tally.reset_index().to_dict("records")]
    summary = {"kills": len(kills), "runs": len(runs)}
    summary["runs_bit_for_bit_equal"] = sum(row["equal"] for row in runs)
    summary["problems"] = sum(bool(row["problems"]) for row in alone + runs)
    summary["kills_by_place"] = frame["place"].value_counts().to_dict()
    targets = {"kills": wanted, "runs_bit_for_bit_equal": len(runs), "problems": 0}
    rows = [*kills, *alone, *runs, *places]
    return {"seeds": [seed], "rows": rows, "summary": summary, "targets": targets}


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the kills and writes the result; exit status 1 where a run did not end as it should."""
    parser = environment.argument_parser(__doc__)
    parser.add_argument("--kills", type=int, help=f"{KILLS}, or {QUICK_KILLS} with --quick")
    parser.add_argument("--seed", type=int, default=SEED)
    flags = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # as the runs: an accelerator is left to others
    root = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    kills = flags.kills or (QUICK_KILLS if flags.quick else KILLS)
    result = prove(root, kills, flags.seed)
    environment.write_result(flags.out, (jax, flax, np, ocp), result)
    if result["summary"]["problems"] or result["summary"]["kills"] < kills:
        sys.exit(f"not shown: see the runs' problems; folders and logs are kept in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
