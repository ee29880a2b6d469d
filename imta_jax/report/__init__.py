"""Reports of a run and of its dataset: figures, tables and an HTML page, from the run's folder.

This package imports neither JAX nor TensorFlow, so a report can be drawn from a copied folder on
any machine. Each figure is a function of a `RunRecord` or a `DataRecord`, for use in notebooks:

    run = load_run(workdir)
    figure_budget_curve(run)

    data = load_data_record(workdir / "data")
    figure_contact_sheet(data, "train")
"""

from typing import TYPE_CHECKING

from imta_jax.runtime.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from imta_jax.report.data.class_balance import figure_class_balance
    from imta_jax.report.data.contact_sheet import figure_contact_sheet
    from imta_jax.report.data.data_record import DataRecord
    from imta_jax.report.data.page import write_data_page
    from imta_jax.report.data.parsing import load_data_record
    from imta_jax.report.run.budget import figure_budget_curve, figure_exit_shares
    from imta_jax.report.run.exits import figure_classes, figure_exits, figure_reliability
    from imta_jax.report.run.gallery import figure_gallery
    from imta_jax.report.run.methods import figure_threshold_methods, methods_table
    from imta_jax.report.run.page import write_report
    from imta_jax.report.run.progress import figure_training
    from imta_jax.report.run.run_record import (
        RunRecord,
        load_progress,
        load_run,
        read_metrics,
        run_record,
    )
    from imta_jax.report.run.summary import operating_point
    from imta_jax.report.run.tables import budgets_table, exits_table, run_table, tables_markdown
    from imta_jax.report.run.time_budget import figure_time

__all__ = [
    "DataRecord",
    "RunRecord",
    "budgets_table",
    "exits_table",
    "figure_budget_curve",
    "figure_class_balance",
    "figure_classes",
    "figure_contact_sheet",
    "figure_exit_shares",
    "figure_exits",
    "figure_gallery",
    "figure_reliability",
    "figure_threshold_methods",
    "figure_time",
    "figure_training",
    "load_data_record",
    "load_progress",
    "load_run",
    "methods_table",
    "operating_point",
    "read_metrics",
    "run_record",
    "run_table",
    "tables_markdown",
    "write_data_page",
    "write_report",
]

_BY_MODULE = {
    "DataRecord": "imta_jax.report.data.data_record",
    "RunRecord": "imta_jax.report.run.run_record",
    "budgets_table": "imta_jax.report.run.tables",
    "exits_table": "imta_jax.report.run.tables",
    "figure_budget_curve": "imta_jax.report.run.budget",
    "figure_class_balance": "imta_jax.report.data.class_balance",
    "figure_classes": "imta_jax.report.run.exits",
    "figure_contact_sheet": "imta_jax.report.data.contact_sheet",
    "figure_exit_shares": "imta_jax.report.run.budget",
    "figure_exits": "imta_jax.report.run.exits",
    "figure_gallery": "imta_jax.report.run.gallery",
    "figure_reliability": "imta_jax.report.run.exits",
    "figure_threshold_methods": "imta_jax.report.run.methods",
    "figure_time": "imta_jax.report.run.time_budget",
    "figure_training": "imta_jax.report.run.progress",
    "load_data_record": "imta_jax.report.data.parsing",
    "load_progress": "imta_jax.report.run.run_record",
    "load_run": "imta_jax.report.run.run_record",
    "methods_table": "imta_jax.report.run.methods",
    "operating_point": "imta_jax.report.run.summary",
    "read_metrics": "imta_jax.report.run.run_record",
    "run_record": "imta_jax.report.run.run_record",
    "run_table": "imta_jax.report.run.tables",
    "tables_markdown": "imta_jax.report.run.tables",
    "write_data_page": "imta_jax.report.data.page",
    "write_report": "imta_jax.report.run.page",
}

__getattr__, __dir__ = lazy_imports(__name__, _BY_MODULE)
