"""Tables, figures and the page of studies, beside the paper's printed numbers.

Each is a function of a `StudyRecord`; `python -m imta_jax.studies` draws them all:

    study = load_study("runs/ablation/study.json")
    ablation_table(study).frame
    figure_ablation(study)
"""

from imta_jax.studies.report.budget_figures import figure_ablation, figure_study_budget
from imta_jax.studies.report.page import write_evidence
from imta_jax.studies.report.record import StudyRecord, load_study, study_from
from imta_jax.studies.report.sweep_figures import figure_distillation, figure_gradient_variance
from imta_jax.studies.report.tables import ablation_table, classifiers_table
from imta_jax.studies.report.training_figures import figure_ranks, figure_validation
from imta_jax.studies.report.variant_tables import (
    budget_table,
    distillation_table,
    equilibrium_table,
)

__all__ = [
    "StudyRecord",
    "ablation_table",
    "budget_table",
    "classifiers_table",
    "distillation_table",
    "equilibrium_table",
    "figure_ablation",
    "figure_distillation",
    "figure_gradient_variance",
    "figure_ranks",
    "figure_study_budget",
    "figure_validation",
    "load_study",
    "study_from",
    "write_evidence",
]
