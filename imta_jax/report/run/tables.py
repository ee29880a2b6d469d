"""The report's tables: every number of `results.json` that a reader would want to copy.

Each table is a frame of texts, so that the page and the Markdown file show the same digits.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from imta_jax.report.rendering import markdown_table
from imta_jax.report.run.methods import methods_table
from imta_jax.report.run.record import PHASES, RunRecord

PHASE_NAMES = {"phase_one": "Phase I", "phase_two": "Phase II"}
# Thresholds beyond any confidence stand for "nobody leaves here" and "everybody does".
ALWAYS, NEVER = -1.0, 2.0


def exits_table(run: RunRecord) -> pd.DataFrame:
    """One row per exit: cumulative cost and the accuracy if all images left there."""
    exits = run.exits
    return pd.DataFrame(
        {
            "exit": [f"{v:.0f}" for v in exits["exit"]],
            "multiply-adds": _counts(exits["macs"]),
            "of the last exit": [f"{v / run.full_macs:.1%}" for v in exits["macs"]],
            "operations as published": _counts(exits["published_ops"]),
            "parameters": _counts(exits["params"]),
            "top-1 (%)": _percentages(exits["top1"]),
            "top-5 (%)": _percentages(exits["top5"]),
            "ECE (%)": _percentages(exits["ece"]),
        }
    )


def budgets_table(run: RunRecord) -> pd.DataFrame:
    """One row per reported budget; empty if the run reported none."""
    budgets = run.reported_budgets
    if not len(budgets):
        return budgets
    return pd.DataFrame(
        {
            "budget": [f"{v:.0%}" for v in budgets["budget"]],
            "mean multiply-adds": _counts(budgets["mean_macs"]),
            "of the last exit": [f"{v / run.full_macs:.1%}" for v in budgets["mean_macs"]],
            "top-1 (%)": _percentages(budgets["top1"]),
            "validation top-1 (%)": _percentages(budgets["validation_top1"]),
            "leave at each exit (%)": [_shares(v) for v in budgets["exit_fractions"]],
            "thresholds": [" / ".join(map(_threshold, v)) for v in budgets["thresholds"]],
        }
    )


def run_table(run: RunRecord) -> pd.DataFrame:
    """What was run, on what, with what: two columns, `fact` and `value`."""
    facts = [*_data_facts(run.dataset), *_phase_facts(run.phases), *_machine_facts(run.environment)]
    return pd.DataFrame([f for f in facts if f[1]], columns=["fact", "value"])


def all_tables(run: RunRecord) -> dict[str, pd.DataFrame]:
    """The tables by heading, in order; an empty one is left out."""
    tables = {
        "Exits": exits_table(run),
        "Reported budgets": budgets_table(run),
        "Threshold methods": methods_table(run),
        "The run": run_table(run),
    }
    return {heading: table for heading, table in tables.items() if len(table)}


def tables_markdown(run: RunRecord) -> str:
    """All tables as one Markdown text."""
    parts = [f"# Results of {run.dataset['name']}"]
    for heading, table in all_tables(run).items():
        parts += [f"## {heading}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def _data_facts(dataset: dict[str, Any]) -> list[tuple[str, str]]:
    examples = dataset.get("examples") or {}
    return [
        ("Data", dataset["name"]),
        ("Classes", f"{len(dataset.get('class_names') or [])}"),
        ("Image height, width, channels", " x ".join(map(str, dataset.get("image_shape") or []))),
        ("Images", ", ".join(f"{split} {count:,}" for split, count in examples.items())),
        ("Normalized by", str(dataset.get("statistics_source") or "")),
        ("Note", str(dataset.get("note") or "")),
    ]


def _phase_facts(phases: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(PHASE_NAMES[name], _phase(phases[name])) for name in PHASES if name in phases]


def _phase(facts: dict[str, Any]) -> str:
    parts = []
    if facts.get("epochs") is not None:
        parts.append(f"{facts['epochs']:,} epochs")
    if facts.get("steps") is not None:
        parts.append(f"{facts['steps']:,} steps")
    if facts.get("seconds") is not None:
        parts.append(duration(facts["seconds"]))
    if facts.get("final_learning_rate") is not None:
        parts.append(f"final learning rate {facts['final_learning_rate']:.3g}")
    return ", ".join(parts)


def _machine_facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    versions = environment.get("versions") or {}
    return [
        ("Hardware", f"{environment.get('devices', 1)} x {environment.get('device', 'unknown')}"),
        ("Seed", str(environment.get("seed", ""))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Finished", str(environment.get("finished") or "")),
    ]


def duration(seconds: float) -> str:
    """A time in words, with about two digits, e.g. "0.21 s", "42 s", "3 min 5 s", "11 h 40 min"."""
    if seconds < 9.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _counts(values: Sequence[float]) -> list[str]:
    return [f"{value:,.0f}" for value in values]


def _percentages(values: Sequence[float]) -> list[str]:
    return [f"{value:.2f}" for value in values]


def _shares(fractions: Sequence[float]) -> str:
    return " / ".join(f"{100 * fraction:.1f}" for fraction in fractions)


def _threshold(value: float) -> str:
    if value > NEVER:
        return "never"
    return "always" if value <= ALWAYS else f"{value:.4f}"
