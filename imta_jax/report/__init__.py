"""The report of a run: figures, tables and one page, from a run's folder alone.

Imports neither JAX nor TensorFlow, so it works wherever the folder was copied to. Each figure is a
function of a `RunRecord`, for notebooks:

    run = load_run(workdir)
    figure_budget_curve(run)
"""

from imta_jax.report.budget import figure_budget_curve, figure_exit_shares
from imta_jax.report.exits import figure_classes, figure_exits, figure_reliability
from imta_jax.report.gallery import figure_gallery
from imta_jax.report.page import write_report
from imta_jax.report.progress import figure_training
from imta_jax.report.run_record import RunRecord, load_run
from imta_jax.report.summary import OperatingPoint, operating_point
from imta_jax.report.tables import budgets_table, exits_table, facts_table, tables_markdown

__all__ = [
    "OperatingPoint",
    "RunRecord",
    "budgets_table",
    "exits_table",
    "facts_table",
    "figure_budget_curve",
    "figure_classes",
    "figure_exit_shares",
    "figure_exits",
    "figure_gallery",
    "figure_reliability",
    "figure_training",
    "load_run",
    "operating_point",
    "tables_markdown",
    "write_report",
]
