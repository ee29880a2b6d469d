"""Times a training step and a forward pass against PyTorch in its best mode on the device.

Both start from the same weights, read the same images and compute the same losses, which is
checked. Contenders take turns, each in its own process that sleeps while another computes. The
duration of the paper's full training is extrapolated from the step times.

    python benchmarks/train_step.py --out=benchmarks/results/train_step.json --compile-times
    python benchmarks/train_step.py --out=result.json --device=cuda
    python benchmarks/train_step.py --out=result.json --device=tpu --without-torch

PyTorch is an extra: pip install -e ".[benchmark]". Its network is `torch_msdnet.py`, which is
checked against recorded numbers of the published one first. All contenders of a case share the
memory of one device; if that is too small, choose some of PyTorch's modes with `--torch-mode`.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flax
import jax
import numpy as np

from benchmarks import measurement, result_file, step_contenders
from benchmarks.cases import DEVICES, KINDS, PRECISIONS, SEED, Case
from benchmarks.measurement import Measurements, spread
from benchmarks.step_contenders import CLOCKS, TORCH_MODES
from imta_jax.models import NETWORK_PRESETS
from imta_jax.runtime.environment import usable_cores
from imta_jax.runtime.huge_pages import restart_with_huge_pages

Contender = tuple[str, str]  # framework and mode
Timings = dict[tuple[str, Contender], np.ndarray]  # (kind, contender) -> seconds per step [rounds]

CIFAR, IMAGENET = ("cifar_5_exits", "cifar_7_exits"), "imagenet_step_4_published"
WARM_UP = 2  # steps
FULL = {"networks": CIFAR, "rounds": 9, "steps": 6}
QUICK = {"networks": CIFAR[:1], "rounds": 3, "steps": 2}
TARGETS = {
    "phase_one_vs_torch": "at least 1",
    "forward_vs_torch": "at least 1.3",
    "phase_two_vs_phase_one": "at most 0.4",
}
# Allowed difference of the first losses and logits, relative to the largest value.
AGREEMENT = {"float32": 1e-3, "tensorfloat32": 0.05, "bfloat16": 0.1}
# The paper's training images, and epochs of phase I and II.
SCHEDULES = {"cifar": (45_000, 300, 180), "imagenet": (1_231_167, 90, 90)}
NOTES = {
    "phase_one": "normalization, forward in training mode, summed cross-entropy with gradient"
    " equilibrium on all maps, accuracies, backward, SGD with Nesterov momentum and weight decay",
    "forward": "normalization and the logits of all exits in evaluation mode",
    "phase_two": "ours only: collaborative heads on the frozen backbone",
    "ratios": "above 1: ours takes less time; of each framework, the mode with the lowest median",
    "least": "the ratio of the least times over all rounds; other load on a shared machine"
    " affects it less than the median",
    "memory": "transparent huge pages for all contenders, as in launch.py",
    "warm_up": "two steps at the start of each turn do not count: CPU caches are cold after"
    " another process computed",
    "clock": "cpu: computing seconds of all threads, for a machine with other load",
    "whole_runs": "hours of the steps, extrapolated; without validation and checkpoints",
    "first_step": "launch.py from its start to the log line of the first step, with an empty (cold)"
    " or a filled (warm) compilation cache",
}


def cases(arguments: Any, networks: Sequence[str], threads: int) -> list[Case]:
    """The cases of a device, or those that the arguments name."""
    accelerator = arguments.device != "cpu"
    precisions = arguments.precision or (PRECISIONS if accelerator else PRECISIONS[:1])
    if arguments.network:
        pairs = list(itertools.product(arguments.network, arguments.batch or [64]))
    else:
        batches = arguments.batch or ([64, 256] if accelerator else [64])
        pairs = list(itertools.product(networks, batches))
        pairs += [(IMAGENET, 256)] if accelerator else []
    return [Case(n, b, p, arguments.device, threads) for n, b in pairs for p in precisions]


def measure(
    case: Case, contenders: Sequence[Contender], rounds: int, steps: int, clock: str = "wall"
) -> tuple[Timings, dict[str, Any]]:
    """Times all contenders of a case in turns.

    Returns:
      Seconds per step, and the largest relative difference of each contender's first logits and
      losses from ours.

    Raises:
      ValueError: the first logits or losses of a contender differ from ours.
    """
    seconds: Timings = {}
    with contextlib.ExitStack() as stack:
        calls, weights, difference, first = {}, None, {}, {}
        for framework, mode in contenders:
            print(f"{case.name}: {framework}, {mode}", flush=True)  # compilation takes minutes
            call = calls[framework, mode] = stack.enter_context(step_contenders.own_process())
            weights = call(step_contenders.begin, case, framework, mode, weights) or weights
            # Logits and losses of the initial weights, before the first update.
            for kind in ("forward", "phase_one"):
                _, values = call(step_contenders.work, kind, 1, clock)
                first.setdefault(kind, values)
                difference[f"{framework}: {mode}, {kind}"] = _difference(values, first[kind])
        _check_agreement(case, difference)
        for kind in KINDS:
            members = [c for c in calls if kind != "phase_two" or c[0] == "ours"]
            turns = {f"{c}": _turn(calls[c], kind, steps, clock) for c in members}
            timed: Measurements = measurement.take_turns(turns, rounds)
            seconds |= {(kind, c): timed[f"{c}"] for c in members}
    return seconds, difference


def _turn(call: Callable[..., Any], kind: str, steps: int, clock: str) -> Callable[[int], float]:
    def turn(_: int) -> float:
        time.sleep(0.05)  # threads of the previous contender spin before they sleep
        call(step_contenders.work, kind, WARM_UP, clock)
        return call(step_contenders.work, kind, steps, clock)[0]

    return turn


def _difference(values: Sequence[float], expected: Sequence[float]) -> float:
    difference = np.abs(np.subtract(values, expected)).max() / np.abs(expected).max()
    return float(f"{difference:.2g}")


def _check_agreement(case: Case, difference: Mapping[str, float]) -> None:
    limit = AGREEMENT[case.precision]
    beyond = {name: value for name, value in difference.items() if not value <= limit}
    if beyond:
        raise ValueError(
            f"{case.name}: logits or losses differ from ours by {beyond}; the limit is {limit}"
        )


def step_rows(case: Case, timings: Timings) -> list[dict[str, Any]]:
    """One row per kind and contender."""
    header = {"network": case.network, "batch_size": case.batch_size, "precision": case.precision}
    return [
        {"part": "steps", "kind": kind, **header, "framework": framework, "mode": mode}
        | {"ms": spread(1e3 * seconds)}
        | {"images_per_second": spread(case.batch_size / seconds)["median"]}
        for (kind, (framework, mode)), seconds in timings.items()
    ]


def best(timings: Timings, kind: str, framework: str) -> np.ndarray:
    """Seconds per step [rounds] of a framework in its mode with the lowest median."""
    seconds = [s for (k, (name, _)), s in timings.items() if (k, name) == (kind, framework)]
    return min(seconds, key=np.median)


def ratios(timings: Timings) -> dict[str, np.ndarray]:
    """Headline ratios per round; those against PyTorch only if it was measured."""
    our_seconds = {kind: best(timings, kind, "ours") for kind in KINDS}
    result = {"phase_two_vs_phase_one": our_seconds["phase_two"] / our_seconds["phase_one"]}
    if any(framework == "pytorch" for _, (framework, _) in timings):
        for kind in ("phase_one", "forward"):
            result[f"{kind}_vs_torch"] = best(timings, kind, "pytorch") / our_seconds[kind]
    return dict(sorted(result.items()))


def least_ratios(timings: Timings) -> dict[str, float]:
    """Headline ratios of the least times over all rounds and modes."""
    least: dict[tuple[str, str], float] = {}
    for (kind, (framework, _)), seconds in timings.items():
        least[kind, framework] = min(least.get((kind, framework), math.inf), seconds.min())
    kinds = [kind for kind, framework in least if framework == "pytorch"]
    result = {f"{k}_vs_torch": least[k, "pytorch"] / least[k, "ours"] for k in kinds}
    result["phase_two_vs_phase_one"] = least["phase_two", "ours"] / least["phase_one", "ours"]
    return {name: float(f"{value:.4g}") for name, value in result.items()}


def summarize(measured: Mapping[Case, Timings]) -> dict[str, Any]:
    """Each headline ratio of the worst case, and of every case."""
    by_case = {
        case.name: measurement.medians(ratios(timings)) for case, timings in measured.items()
    }
    summary: dict[str, Any] = {}
    for name in sorted(set().union(*by_case.values()) - {"spread"}):
        values = [ratio[name] for ratio in by_case.values()]
        summary[name] = max(values) if name == "phase_two_vs_phase_one" else min(values)
    for case, ratio in by_case.items():
        summary |= {f"{name} ({case})": value for name, value in ratio.items() if name != "spread"}
    summary["spread"] = {case: ratio["spread"] for case, ratio in by_case.items()}
    summary["spread"] |= {
        f"{case.name}, least": least_ratios(timings) for case, timings in measured.items()
    }
    return summary


def whole_run_rows(case: Case, timings: Timings) -> list[dict[str, Any]]:
    """Hours of the paper's two phases at the measured throughput; PyTorch has phase I only."""
    family = "imagenet" if case.network.startswith("imagenet") else "cifar"
    images, *epochs = SCHEDULES[family]
    steps = images // case.batch_size
    rows = []
    for framework in dict.fromkeys(framework for _, (framework, _) in timings):
        row = {"part": "whole_runs", "network": case.network, "batch_size": case.batch_size}
        row |= {"precision": case.precision, "framework": framework}
        for kind, count in zip(("phase_one", "phase_two"), epochs, strict=True):
            if framework == "pytorch" and kind == "phase_two":
                continue
            seconds = float(np.median(best(timings, kind, framework)))
            row[f"{kind}_images_per_second"] = float(f"{case.batch_size / seconds:.4g}")
            row[f"{kind}_hours"] = float(f"{hours(seconds, steps * count):.4g}")
        rows.append(row)
    return rows


def hours(seconds_per_step: float, steps: int) -> float:
    """Hours of a number of steps."""
    return seconds_per_step * steps / 3600


def run(arguments: Any) -> dict[str, Any]:
    """Rows, summary, and the check of the PyTorch network."""
    size, rows, measured, differences = QUICK if arguments.quick else FULL, [], {}, {}
    cores = usable_cores()
    contenders = step_contenders.modes_for(arguments.device, arguments.torch_mode)
    if arguments.without_torch:
        contenders = [c for c in contenders if c[0] == "ours"]
        verified: Any = "PyTorch was not measured"
    else:
        from benchmarks.torch_msdnet import verify

        verified = measurement.in_own_process(verify)
    for case in cases(arguments, size["networks"], arguments.threads or cores):
        times, differences[case.name] = measure(
            case, contenders, size["rounds"], size["steps"], arguments.clock
        )
        measured[case] = times
        rows += step_rows(case, times)
    rows += [row for case, times in measured.items() for row in whole_run_rows(case, times)]
    record = {"seeds": [SEED], "notes": NOTES, "targets": TARGETS, "apart_from_ours": differences}
    record |= {"clock": arguments.clock, "threads": arguments.threads or cores}
    record |= {"same_as_recorded": verified, "torch": _torch_version(arguments.without_torch)}
    return record | {"rows": rows, "summary": summarize(measured)}


def add_launches(result: dict[str, Any], networks: Sequence[str], device: str) -> None:
    """Adds the time from launch to first step; the summary has that of the first network."""
    from benchmarks.first_step import first_step_rows

    launch_rows = first_step_rows(networks, device)
    result["rows"] += launch_rows
    for cache in ("cold", "warm"):
        result["summary"][f"launch_to_first_step_{cache}_s"] = launch_rows[0][f"{cache}_s"]


def _torch_version(without_torch: bool) -> str:
    """PyTorch's version, without importing it into this process."""
    return "not measured" if without_torch else importlib.metadata.version("torch")


def _at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `minimum`."""

    def number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}")
        return int(text)

    return number


def main() -> None:
    """Measures, prints the tables and writes the result."""
    parser = result_file.argument_parser(__doc__)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    several = {"action": "append", "help": "may be repeated"}
    parser.add_argument("--network", choices=NETWORK_PRESETS, metavar="PRESET", **several)
    parser.add_argument("--batch", type=_at_least(1), metavar="IMAGES", **several)
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--torch-mode", action="append", default=[], choices=list(TORCH_MODES))
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--threads", type=_at_least(0), default=0, help="0: all cores")
    parser.add_argument(
        "--compile-times",
        nargs="*",
        choices=NETWORK_PRESETS,
        metavar="PRESET",
        help="time launch to first step; default: cifar_7_exits",
    )
    arguments = parser.parse_args()
    if arguments.compile_times == []:
        arguments.compile_times = [CIFAR[1]]
    device, with_torch = arguments.device, not arguments.without_torch
    if reason := measurement.in_own_process(step_contenders.unavailable, device, with_torch):
        parser.error(reason)
    with tempfile.TemporaryDirectory() as folder:
        step_contenders.set_environment(Path(folder), arguments.device)
        result = run(arguments)
        result_file.write_result(arguments.out, (jax, flax, np), result)
        if arguments.compile_times:
            # The result above remains if a launch fails.
            add_launches(result, arguments.compile_times, arguments.device)
            result_file.write_result(arguments.out, (jax, flax, np), result)


if __name__ == "__main__":
    restart_with_huge_pages()  # as launch.py does; child processes inherit it
    main()
