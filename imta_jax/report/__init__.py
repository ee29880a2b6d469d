"""The report of a run, and that of its data: figures, tables and a page, from its folder alone.

Imports neither JAX nor TensorFlow, so it works wherever the folder was copied to. Each figure is a
function of a `RunRecord`, or of a `DataRecord`, for notebooks:

    run = load_run(workdir)
    figure_budget_curve(run)

    data = load_data_record(workdir / "data")
    figure_contact_sheet(data, "train")

or of a `StudyRecord`, of several arms and seeds, which `python -m imta_jax.report` draws together:

    study = load_study("runs/ablation/study.json")
    ablation_table(study).frame
    figure_ablation(study)
"""

from imta_jax.report.budget import figure_budget_curve, figure_exit_shares
from imta_jax.report.class_balance import figure_class_balance
from imta_jax.report.contact_sheet import figure_contact_sheet
from imta_jax.report.data_page import write_data_page
from imta_jax.report.data_record import DataRecord, load_data_record
from imta_jax.report.evidence import write_evidence
from imta_jax.report.exits import figure_classes, figure_exits, figure_reliability
from imta_jax.report.gallery import figure_gallery
from imta_jax.report.methods import figure_threshold_methods, methods_table
from imta_jax.report.page import write_report
from imta_jax.report.progress import figure_training
from imta_jax.report.run_record import RunRecord, load_progress, load_run, read_metrics
from imta_jax.report.study_arm_tables import budget_table, distillation_table, equilibrium_table
from imta_jax.report.study_figures import figure_ablation, figure_study_budget
from imta_jax.report.study_record import StudyRecord, load_study, study_from
from imta_jax.report.study_sweep_figures import figure_distillation, figure_gradient_variance
from imta_jax.report.study_tables import ablation_table, classifiers_table
from imta_jax.report.study_training_figures import figure_ranks, figure_validation
from imta_jax.report.summary import OperatingPoint, operating_point
from imta_jax.report.tables import budgets_table, exits_table, facts_table, tables_markdown

__all__ = [
    "DataRecord",
    "OperatingPoint",
    "RunRecord",
    "StudyRecord",
    "ablation_table",
    "budget_table",
    "budgets_table",
    "classifiers_table",
    "distillation_table",
    "equilibrium_table",
    "exits_table",
    "facts_table",
    "figure_ablation",
    "figure_budget_curve",
    "figure_class_balance",
    "figure_classes",
    "figure_contact_sheet",
    "figure_distillation",
    "figure_exit_shares",
    "figure_exits",
    "figure_gallery",
    "figure_gradient_variance",
    "figure_ranks",
    "figure_reliability",
    "figure_study_budget",
    "figure_threshold_methods",
    "figure_training",
    "figure_validation",
    "load_data_record",
    "load_progress",
    "load_run",
    "load_study",
    "methods_table",
    "operating_point",
    "read_metrics",
    "study_from",
    "tables_markdown",
    "write_data_page",
    "write_evidence",
    "write_report",
]
