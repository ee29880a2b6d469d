"""Tables, figures and the page of studies, with the paper's printed numbers for comparison.

Each table and figure is a function of a `StudyRecord`. `python -m imta_jax.studies` draws them all:

    study = load_study("runs/ablation/ablation/study.json")
    ablation_table(study).frame
    figure_ablation(study)
"""

from imta_jax.studies.report.budget_figures import figure_ablation, figure_study_budget
from imta_jax.studies.report.page import write_study_report
from imta_jax.studies.report.paper_tables import ablation_table
from imta_jax.studies.report.parsing import load_study, parse_study
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord
from imta_jax.studies.report.study_tables import (
    budget_table,
    distillation_table,
    equilibrium_table,
)
from imta_jax.studies.report.sweep_figures import figure_distillation, figure_gradient_variance
from imta_jax.studies.report.sweep_table import sweep_table
from imta_jax.studies.report.table_one import classifiers_table
from imta_jax.studies.report.training_figures import figure_ranks, figure_validation

__all__ = [
    "StudyRecord",
    "VariantRecord",
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
    "parse_study",
    "sweep_table",
    "write_study_report",
]
