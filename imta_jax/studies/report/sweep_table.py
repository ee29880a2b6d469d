"""The table of a sweep: one row per setting, ranked by validation accuracy."""

import numpy as np
import pandas as pd

from imta_jax.studies.report.study_record import StudyRecord, VariantRecord
from imta_jax.studies.report.study_tables import (
    mean_over_exits,
    nearly_best,
    ranked_settings,
    setting_text,
)
from imta_jax.studies.report.table import EMPTY, StudyTable, failures, mean_texts
from imta_jax.studies.sweep import short_names

_SPLITS = ("validation", "test")


def sweep_table(study: StudyRecord) -> StudyTable:
    """One row per setting, the best on validation images first, those without a run last."""
    fields = short_names(
        dict.fromkeys(name for variant in study.variants for name in variant.overrides)
    )
    ranked = ranked_settings(study)
    unrun = [variant for variant in study.variants if not study.finished(variant)]
    rows = [_row(study, fields, str(rank), variant) for rank, variant in enumerate(ranked, 1)]
    rows += [_row(study, fields, EMPTY, variant) for variant in unrun]
    columns = ["rank", *fields.values(), "finished seeds"]
    columns += [
        f"{split}, {exits}" for split in _SPLITS for exits in ("mean of exits", "last exit")
    ]
    return StudyTable(
        heading=f"Sweep ({study.title})",
        provenance=study.provenance(),
        frame=pd.DataFrame(rows, columns=columns),
        notes=(
            "Top-1 (%), mean ± sample standard deviation over seeds. Settings are ranked by the "
            "mean over exits on validation images. Test images select nothing.",
            nearly_best(study),
            *failures(study),
        ),
    )


def _row(
    study: StudyRecord, fields: dict[str, str], rank: str, variant: VariantRecord
) -> list[str]:
    settings = [setting_text(variant.overrides.get(field)) for field in fields]
    accuracies = []
    for split in _SPLITS:
        top1 = study.top1(variant, split)
        last = top1[:, -1] if top1.size else np.zeros(0)
        accuracies += [mean_texts(v[:, None])[0] for v in (mean_over_exits(top1), last)]
    return [rank, *settings, study.status(variant), *accuracies]
