"""The page: all figures and tables of a run in one HTML file that needs nothing else."""

import json
from pathlib import Path

from imta_jax.report.rendering import (
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
from imta_jax.report.run.record import RunRecord, load_run
from imta_jax.report.run.summary import TOLERANCE_POINTS, operating_point
from imta_jax.report.run.tables import all_tables, tables_markdown
from imta_jax.report.run.time_budget import figure_time
from imta_jax.report.style import format_count, format_signed
from imta_jax.runtime.files import write_atomically

SECTIONS = (
    Section(
        "budget_curve",
        figure_budget_curve,
        "How much accuracy does a budget buy?",
        "Further left is cheaper, higher is better: the thick line lets every image leave as soon "
        "as an exit is confident enough, the numbered circles send all images to the same exit, "
        "and the ring is the cheapest budget within "
        f"{TOLERANCE_POINTS} points of the full network on validation images.",
    ),
    Section(
        "time",
        figure_time,
        "And what does it buy in time?",
        "The same network, with milliseconds per image on one device in place of multiply-adds: "
        "thresholds were chosen on validation images for budgets in time, the circles are its "
        "exits.",
        needs="time",
    ),
    Section(
        "exit_shares",
        figure_exit_shares,
        "Where do images leave?",
        "Read a vertical slice from bottom to top: at that mean cost, the height of a color is "
        "the share of images that leave at its exit; early exits are light, late ones dark.",
    ),
    Section(
        "threshold_methods",
        figure_threshold_methods,
        "Does it matter how thresholds are chosen?",
        "All methods choose on the same validation images. Below, each is compared, image by "
        "image, with the geometric sweep at the same cost: where a bar crosses zero, the test "
        "images cannot tell the two apart. Guaranteed thresholds keep to a tolerance below the "
        "full network rather than to a budget.",
        needs="threshold_methods",
    ),
    Section(
        "gallery",
        figure_gallery,
        "What do easy and hard images look like?",
        "Below each image stands its true class, then whether the network was right (✓) or what "
        "it said instead (✗, framed), with its confidence at the exit where the image left.",
        needs="gallery",
    ),
    Section(
        "classes",
        figure_classes,
        "Which classes leave early?",
        "Each bar is one class, cheapest at the top: the longer its light part, the more of its "
        "images the first exits can settle.",
        needs="samples",
    ),
    Section(
        "exits",
        figure_exits,
        "How good is each exit alone?",
        "Accuracy should rise with depth; the calibration error is the mean distance between "
        "how sure an exit is and how often it is right, so lower is better.",
    ),
    Section(
        "reliability",
        figure_reliability,
        "Can the confidence be trusted?",
        "On the dashed diagonal an exit is right exactly as often as it says; below it, it is too "
        "sure of itself. A larger point stands for more images.",
        needs="calibration",
    ),
    Section(
        "training",
        figure_training,
        "How did training go?",
        "Strong lines are validation images, faint lines training images; dotted verticals mark "
        "where the learning rate was lowered.",
        needs="metrics",
    ),
)


def write_report(workdir: str | Path) -> Path:
    """Writes a run's report into `workdir/report/`: figures, `tables.md` and `index.html`.

    Args:
      workdir: a run's folder with `results.json`; see `load_run` for what else is read.

    Returns:
      The path of `index.html`, which is written last: where it is new, all else is.

    Raises:
      FileNotFoundError: `results.json` is not there.
      ValueError: `results.json` is damaged or lacks a part.
    """
    run = load_run(workdir)
    folder = run.workdir / "report"
    folder.mkdir(exist_ok=True)
    figures = draw_figures(run, SECTIONS)
    write_figures(folder, SECTIONS, figures)
    write_atomically(folder / "tables.md", tables_markdown(run))
    write_atomically(folder / "index.html", render_page(run, figures))
    return folder / "index.html"


def render_page(run: RunRecord, figures: dict[str, bytes]) -> str:
    """The page as HTML that embeds the figures (PNG by section name) and refers to nothing."""
    return render(
        "run_page.html.jinja",
        SECTIONS,
        figures,
        run=run,
        lead=_lead(run),
        point=operating_point(run),
        tolerance=TOLERANCE_POINTS,
        format_count=format_count,
        format_signed=format_signed,
        tables=all_tables(run),
        config=json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False),
    )


def _lead(run: RunRecord) -> str:
    """One sentence: what was trained, on what, for how long."""
    backbone = (run.config.get("model") or {}).get("backbone") or "network"
    examples = (run.dataset.get("examples") or {}).get("train")
    images = f"{examples:,} images of " if examples else ""
    epochs = [f"{facts['epochs']}" for facts in run.phases.values() if "epochs" in facts]
    duration = f", {' + '.join(epochs)} epochs" if epochs else ""
    trained = f"trained on {images}{run.dataset['name']}{duration}"
    return f"{backbone} with {run.num_exits} exits, {trained}."
