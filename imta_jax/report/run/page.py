"""The report of a run: all figures and tables in one self-contained HTML file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imta_jax.report.dataset_titles import dataset_title
from imta_jax.report.rendering import (
    FigureImages,
    Section,
    draw_figures,
    render,
    write_figures,
)
from imta_jax.report.run.budget import figure_budget_curve, figure_exit_shares
from imta_jax.report.run.exits import figure_classes, figure_exits, figure_reliability
from imta_jax.report.run.gallery import figure_gallery
from imta_jax.report.run.methods import figure_threshold_methods
from imta_jax.report.run.progress import figure_training
from imta_jax.report.run.run_record import RunRecord, load_run
from imta_jax.report.run.summary import TOLERANCE_POINTS, cards, operating_point
from imta_jax.report.run.tables import all_tables, tables_markdown
from imta_jax.report.run.time_budget import figure_time
from imta_jax.report.style import format_percentage, format_share
from imta_jax.runtime.files import create_folder, write_atomically

SECTIONS = (
    Section(
        "budget_curve",
        figure_budget_curve,
        "What accuracy does a budget give?",
        "Lower cost is to the left, higher accuracy at the top. The thick line shows adaptive "
        "inference: each image uses the first exit that is confident enough. A numbered circle "
        "shows the accuracy if all images use that exit. The ring marks the cheapest budget within "
        f"{TOLERANCE_POINTS} points of the full network on validation images.",
    ),
    Section(
        "time",
        figure_time,
        "What accuracy does a time budget give?",
        "As above, with measured milliseconds per image instead of multiply-adds. Thresholds are "
        "chosen on validation images for time budgets. Circles are single exits.",
        needs="time",
    ),
    Section(
        "exit_shares",
        figure_exit_shares,
        "Which exits do images use?",
        "At each mean cost, the height of a color is the fraction of images that use its exit. "
        "Early exits are light, late exits dark.",
    ),
    Section(
        "threshold_methods",
        figure_threshold_methods,
        "Does it matter how thresholds are chosen?",
        "All methods use the same validation images. The lower panel compares each with the "
        "geometric sweep at equal cost, paired by image. If an interval includes zero, the "
        "difference is not significant on these test images. Risk control keeps the accuracy "
        "within a tolerance of the full network instead of meeting a budget.",
        needs="threshold_methods",
    ),
    Section(
        "gallery",
        figure_gallery,
        "What do easy and hard images look like?",
        "Below each image: its true class, then ✓ for a correct prediction or ✗ and the predicted "
        "class (framed), with the confidence at the exit that the image used.",
        needs="gallery",
    ),
    Section(
        "classes",
        figure_classes,
        "Which classes exit early?",
        "Each bar is one class, the cheapest at the top. A longer light part means that more of "
        "its images use the first exits.",
        needs="samples",
    ),
    Section(
        "exits",
        figure_exits,
        "How accurate is each exit?",
        "Accuracy should rise with depth. The calibration error is the mean difference between "
        "an exit's confidence and its accuracy; lower is better.",
    ),
    Section(
        "reliability",
        figure_reliability,
        "Is the confidence calibrated?",
        "On the dashed diagonal, accuracy equals confidence; below it, the exit is overconfident. "
        "Larger points stand for more images.",
        needs="calibration",
    ),
    Section(
        "training",
        figure_training,
        "How did training go?",
        "Strong lines show validation images, faint lines training images. Dotted vertical lines "
        "mark drops of the learning rate.",
        needs="metrics",
    ),
)


def write_report(workdir: str | Path) -> Path:
    """Writes a run's report into `workdir/report/`: figures, `tables.md` and `index.html`.

    Args:
      workdir: folder of a run with `results.json`; see `load_run` for the other files it reads.

    Returns:
      Path of `index.html`, which is written last.

    Raises:
      FileNotFoundError: `results.json` does not exist.
      FileExistsError: `report` is a file.
      ValueError: `results.json` is damaged or incomplete.
    """
    run = load_run(workdir)
    folder = run.workdir / "report"
    create_folder(folder)
    figures = draw_figures(run, SECTIONS)
    write_figures(folder, SECTIONS, figures)
    write_atomically(folder / "tables.md", tables_markdown(run))
    write_atomically(folder / "index.html", render_page(run, figures))
    return folder / "index.html"


def render_page(run: RunRecord, figures: dict[str, FigureImages]) -> str:
    """The page as self-contained HTML; `figures` has the figures by section name."""
    return render(
        "run_page.html.jinja",
        SECTIONS,
        figures,
        run=run,
        lead=_lead(run),
        dataset=dataset_title(run.dataset["name"]),
        point=operating_point(run),
        cards=cards(run),
        tolerance=TOLERANCE_POINTS,
        format_percentage=format_percentage,
        format_share=format_share,
        tables=all_tables(run),
        config=json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False),
    )


def _lead(run: RunRecord) -> str:
    """One sentence with the network, the training images and the epochs."""
    examples = (run.dataset.get("examples") or {}).get("train")
    images = f"{examples:,} images of " if examples else ""
    epochs = [f"{phase['epochs']}" for phase in run.phases.values() if "epochs" in phase]
    duration = f", {' + '.join(epochs)} epochs" if epochs else ""
    trained = f"trained on {images}{dataset_title(run.dataset['name'])}{duration}"
    return f"{_network_title(run.config.get('model') or {})} with {run.num_exits} exits, {trained}."


_NETWORKS = {"msdnet": "MSDNet", "resnet": "ResNet", "densenet": "DenseNet"}


def _network_title(model: Mapping[str, Any]) -> str:
    """The network for the start of a sentence: "MSDNet", or "Network cifar_5_exits"."""
    if backbone := model.get("backbone"):
        return _NETWORKS.get(backbone, f"Network {backbone}")
    return f"Network {model['preset']}" if model.get("preset") else "Network"
