"""Tables of a run's report, from `results.json`.

All cells are text, so that the page and the Markdown file show the same digits.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from imta_jax.config import PHASES
from imta_jax.report.rendering import markdown_table
from imta_jax.report.run.methods import methods_table
from imta_jax.report.run.run_record import RunRecord
from imta_jax.report.style import format_duration, format_percentage, format_share, pluralize

PHASE_NAMES = {"phase_one": "Phase I", "phase_two": "Phase II"}
# Thresholds outside the range of confidences: all images use the exit, or none does.
ALWAYS, NEVER = -1.0, 2.0


def exits_table(run: RunRecord) -> pd.DataFrame:
    """One row per exit: cumulative cost, and accuracy if all images use the exit."""
    exits = run.exits
    # Results of earlier versions lack it.
    auroc = {"AUROC of confidence": _areas(exits["auroc"])} if "auroc" in exits else {}
    return pd.DataFrame(
        {
            "exit": [f"{v:.0f}" for v in exits["exit"]],
            "multiply-adds": _counts(exits["macs"]),
            "of the last exit": [format_share(v / run.full_macs) for v in exits["macs"]],
            "operations as published": _counts(exits["published_ops"]),
            "parameters": _counts(exits["params"]),
            "top-1 (%)": _percentages(exits["top1"]),
            "top-5 (%)": _percentages(exits["top5"]),
            "ECE (%)": _percentages(exits["ece"]),
            **auroc,
        }
    )


def budgets_table(run: RunRecord) -> pd.DataFrame:
    """One row per reported budget; may be empty."""
    budgets = run.reported_budgets
    if not len(budgets):
        return budgets
    return pd.DataFrame(
        {
            "budget": [f"{v:.0%}" for v in budgets["budget"]],
            "mean multiply-adds": _counts(budgets["mean_macs"]),
            "of the last exit": [format_share(v / run.full_macs) for v in budgets["mean_macs"]],
            "top-1 (%)": _percentages(budgets["top1"]),
            "validation top-1 (%)": _percentages(budgets["validation_top1"]),
            "fraction per exit (%)": [_exit_fractions(v) for v in budgets["exit_fractions"]],
            "thresholds": [" / ".join(map(_threshold, v)) for v in budgets["thresholds"]],
        }
    )


def run_table(run: RunRecord) -> pd.DataFrame:
    """Dataset, phases, hardware and versions of the run, in columns `property` and `value`."""
    rows = [
        *_data_rows(run.dataset),
        *_phase_rows(run.phases),
        *_component_rows(run.config),
        *_hardware_rows(run.environment),
    ]
    return pd.DataFrame([row for row in rows if row[1]], columns=["property", "value"])


def all_tables(run: RunRecord) -> dict[str, pd.DataFrame]:
    """All tables by heading, in order; empty ones are omitted."""
    tables = {
        "Exits": exits_table(run),
        "Reported budgets": budgets_table(run),
        "Threshold methods": methods_table(run),
        "Run": run_table(run),
    }
    return {heading: table for heading, table in tables.items() if len(table)}


def tables_markdown(run: RunRecord) -> str:
    """All tables as Markdown."""
    parts = [f"# Results of {run.dataset['name']}"]
    for heading, table in all_tables(run).items():
        parts += [f"## {heading}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def _data_rows(dataset: dict[str, Any]) -> list[tuple[str, str]]:
    examples = dataset.get("examples") or {}
    return [
        ("Dataset", dataset["name"]),
        ("Classes", f"{len(dataset.get('class_names') or [])}"),
        ("Image height, width, channels", " x ".join(map(str, dataset.get("image_shape") or []))),
        ("Images", ", ".join(f"{split} {count:,}" for split, count in examples.items())),
        ("Normalization statistics", str(dataset.get("statistics_source") or "")),
        ("Note", str(dataset.get("note") or "")),
    ]


# Fields that name a component, and their defaults, which are not listed.
_COMPONENTS = {
    ("Phase-I heads", "model", "heads"): "independent",
    ("Phase-I loss", "phase_one", "objective"): "cross_entropy",
    ("Phase-II loss", "phase_two", "objective"): "one_for_all",
    ("Exit rule of the thresholds", "evaluation", "exit_rule"): "confidence",
}


def _component_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Heads, losses and exit rule with their options; "" for defaults and in older results."""
    rows = []
    for (label, section, field), default in _COMPONENTS.items():
        settings = config.get(section) or {}
        name, options = settings.get(field, default), settings.get(f"{field}_options") or {}
        values = ", ".join(f"{key}={value}" for key, value in options.items())
        text = f"{name} ({values})" if values else name
        rows.append((label, "" if (name, values) == (default, "") else text))
    return rows


def _phase_rows(phases: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(PHASE_NAMES[name], _phase(phases[name])) for name in PHASES if name in phases]


def _phase(phase: dict[str, Any]) -> str:
    parts = []
    if phase.get("epochs") is not None:
        parts.append(pluralize(phase["epochs"], "epoch"))
    if phase.get("steps") is not None:
        parts.append(pluralize(phase["steps"], "step"))
    if phase.get("seconds") is not None:
        parts.append(format_duration(phase["seconds"]))
    if phase.get("final_learning_rate") is not None:
        parts.append(f"final learning rate {phase['final_learning_rate']:.3g}")
    return ", ".join(parts)


def _hardware_rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    versions = environment.get("versions") or {}
    return [
        ("Hardware", _hardware(environment)),
        ("Seed", str(environment.get("seed", ""))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Command", str(environment.get("command") or "")),
        ("Commit", str(environment.get("commit") or "")),
        ("Finished", str(environment.get("finished") or "")),
    ]


def _hardware(environment: dict[str, Any]) -> str:
    """The devices and, in results that record it, the CPU: "1 x cpu (2 cores of AMD EPYC)"."""
    devices = f"{environment.get('devices', 1)} x {environment.get('device', 'unknown')}"
    cpu, cores = environment.get("cpu"), environment.get("cores")
    return f"{devices} ({pluralize(cores, 'core')} of {cpu})" if cpu and cores else devices


def _counts(values: Iterable[Any]) -> list[str]:
    return [f"{value:,.0f}" for value in values]


def _percentages(values: Iterable[Any]) -> list[str]:
    return [format_percentage(value) for value in values]


def _areas(values: Iterable[Any]) -> list[str]:
    """Areas under ROC curves; empty where they are not defined."""
    return ["" if pd.isna(value) else f"{value:.3f}" for value in values]


def _exit_fractions(fractions: Sequence[float]) -> str:
    return " / ".join(f"{100 * fraction:.1f}" for fraction in fractions)


def _threshold(value: float) -> str:
    if value > NEVER:
        return "never"
    return "always" if value <= ALWAYS else f"{value:.4f}"
