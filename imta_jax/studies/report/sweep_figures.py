"""Figures of the distillation sweep (alpha x temperature) and of gradient variances (Eq. 3)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from imta_jax.report.style import INK, MUTED, new_figure, style_axes, text_color_on
from imta_jax.studies.report.study_record import StudyRecord, VariantRecord, mean_and_std
from imta_jax.studies.report.study_tables import (
    SETTINGS,
    gradient_variances,
    mean_over_exits,
    nearly_best,
    setting_text,
)
from imta_jax.studies.report.style import (
    add_legend,
    add_missing_to_legend,
    add_provenance,
    draw_placeholder,
    variant_colors,
)

ALPHA, TEMPERATURE = "phase_two.alpha", "phase_two.temperature"
PANELS_PER_ROW = 3

# Variants by (alpha, temperature).
Cells = dict[tuple[float, float], VariantRecord]

_SETTING_NAMES = {
    ("phase_two.reduction", "batch"): "KL summed",
    ("phase_two.reduction", "elements"): "KL averaged",
    ("phase_two.teacher", "own_last_exit"): "own last exit",
    ("phase_two.teacher", "phase_one_last_exit"): "phase-I last exit",
    ("phase_two.temperature_squared", True): "times T²",
    ("phase_two.temperature_squared", False): "",
}


def figure_distillation(study: StudyRecord) -> Figure:
    """Validation top-1 (mean over exits and seeds) by alpha and temperature.

    One heat map per combination of the other settings (teacher, reduction), all with one color
    scale. The best cell is framed. Cells without a run show their status. Variants that do not
    set alpha and temperature are listed below.
    """
    panels = sweep_panels(study)
    rows = -(-len(panels) // PANELS_PER_ROW) or 1
    columns = min(max(len(panels), 1), PANELS_PER_ROW)
    figure = new_figure(max(8.4, 1.2 + 3.6 * columns), 1.4 + 3.2 * rows, _sweep_title(study))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    values = [_validation(study, v) for cells in panels.values() for v in cells.values()]
    limits = _color_limits(np.array(values, dtype=float))
    for axes, (title, cells) in zip(grid, panels.items(), strict=False):
        image = _draw_heatmap(axes, study, title, cells, limits)
    for axes in grid[max(len(panels), 1) :]:
        axes.remove()
    if panels:
        bar = figure.colorbar(image, ax=list(grid[: len(panels)]), fraction=0.04, pad=0.02)
        bar.set_label("validation top-1 (%), mean over exits", fontsize=9, color=INK)
        bar.outline.set_visible(False)
    else:
        draw_placeholder(grid[0], "no variant sets alpha and temperature")
    add_provenance(figure, study, f"{_other_variants(study, panels)} {nearly_best(study)}".strip())
    return figure


def sweep_panels(study: StudyRecord) -> dict[str, Cells]:
    """Groups variants by all settings except alpha and temperature; keys describe the settings."""
    panels: dict[str, Cells] = {}
    for variant in study.variants:
        overrides = variant.overrides
        if ALPHA in overrides and TEMPERATURE in overrides:
            others = {k: v for k, v in overrides.items() if k not in (ALPHA, TEMPERATURE)}
            key = ", ".join(filter(None, (_setting_name(k, v) for k, v in others.items())))
            cell = float(overrides[ALPHA]), float(overrides[TEMPERATURE])
            panels.setdefault(key or "alpha and temperature", {})[cell] = variant
    return panels


def _setting_name(field: str, value: object) -> str:
    """A setting as text in a panel's title; empty if the title omits it."""
    name = SETTINGS.get(field, field.split(".")[-1].replace("_", " "))
    return _SETTING_NAMES.get((field, value), f"{name} {setting_text(value)}")


def _validation(study: StudyRecord, variant: VariantRecord) -> float:
    values = mean_over_exits(study.top1(variant, "validation"))
    return float(values.mean()) if len(values) else float("nan")


def _color_limits(values: np.ndarray) -> tuple[float, float]:
    """The range of the values, at least half a point: smaller differences are noise."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    middle, half = (known.max() + known.min()) / 2, max(np.ptp(known), 0.5) / 2
    return middle - half, middle + half


def _draw_heatmap(
    axes: Axes, study: StudyRecord, title: str, cells: Cells, limits: tuple[float, float]
) -> AxesImage:
    alphas, temperatures = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    values = np.full((len(alphas), len(temperatures)), np.nan)
    for (alpha, temperature), variant in cells.items():
        values[alphas.index(alpha), temperatures.index(temperature)] = _validation(study, variant)
    image = axes.imshow(values, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
    y = "alpha (weight of the cross-entropy)"
    style_axes(axes, title=title, x="temperature T", y=y, grid="")
    axes.title.set_fontsize(8.5)
    axes.set_xticks(range(len(temperatures)), [f"{value:g}" for value in temperatures])
    axes.set_yticks(range(len(alphas)), [f"{value:g}" for value in alphas])
    for (alpha, temperature), variant in cells.items():
        cell = temperatures.index(temperature), alphas.index(alpha)
        _write_cell(axes, study, variant, cell, image)
    return image


def _write_cell(
    axes: Axes, study: StudyRecord, variant: VariantRecord, cell: tuple[int, int], image: AxesImage
) -> None:
    value = _validation(study, variant)
    known = np.isfinite(value)
    text = f"{value:.2f}" if known else study.status(variant).replace(" ", "\n")
    color = text_color_on(to_hex(tuple(image.to_rgba(np.array([value]))[0]))) if known else MUTED
    axes.text(*cell, text, ha="center", va="center", fontsize=8.5, color=color)
    if variant == _best(study):
        corner = cell[0] - 0.5, cell[1] - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#c0392b", linewidth=2.5))


def _best(study: StudyRecord) -> VariantRecord | None:
    """The variant of all panels with the best validation top-1."""
    variants = [variant for cells in sweep_panels(study).values() for variant in cells.values()]
    finished = [variant for variant in variants if study.finished(variant)]
    return max(finished, key=lambda variant: _validation(study, variant), default=None)


def _sweep_title(study: StudyRecord) -> str:
    best = _best(study)
    if best is None:
        return f"Alpha and temperature on {study.dataset_title}"
    alpha, temperature = (setting_text(best.overrides[name]) for name in (ALPHA, TEMPERATURE))
    return f"Best on validation images: alpha {alpha}, temperature {temperature}"


def _other_variants(study: StudyRecord, panels: dict[str, Cells]) -> str:
    in_panels = {variant.name for cells in panels.values() for variant in cells.values()}
    others = [variant for variant in study.variants if variant.name not in in_panels]
    finished = [variant for variant in others if study.finished(variant)]
    texts = [f"{variant.label} {_validation(study, variant):.2f}" for variant in finished]
    texts += [f"{v.label} {study.status(v)}" for v in others if v not in finished]
    return f"For comparison: {', '.join(texts)}." if texts else ""


def figure_gradient_variance(study: StudyRecord) -> Figure:
    """Both sides of Eq. 3 at each stage's output, per variant, on a logarithmic scale.

    Lines with circles show the variance over images of the summed loss's gradient. Crosses show
    the sum of the single losses' variances, which is equal if their gradients are uncorrelated.
    """
    figure = new_figure(8.4, 5.2, _variance_title(study))
    axes = figure.subplots()
    style_axes(axes, x="output of stage", y="variance of the gradient over images")
    axes.set_yscale("log")
    colors, stages, seeds = variant_colors(study), 1, 1
    for position, variant in enumerate(study.variants):
        total, losses = gradient_variances(study, variant)
        seeds = max(seeds, len(total))
        if not total.size:
            add_missing_to_legend(axes, study, variant, colors[variant.name])
            continue
        # Variants are drawn side by side, since their crosses and bars may coincide.
        x = np.arange(1, total.shape[1] + 1) + 0.11 * (position - (len(study.variants) - 1) / 2)
        _draw_variance(axes, x, (total, losses), colors[variant.name], variant.label)
        stages = max(stages, total.shape[1])
    axes.set_xticks(range(1, stages + 1))
    add_legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    bars = ", with bars of one standard deviation over seeds" if seeds > 1 else ""
    circles = f"Circles: gradient of the summed loss{bars}."
    add_provenance(figure, study, f"{circles} Crosses: sum of the losses' variances (Eq. 3).")
    return figure


def _draw_variance(
    axes: Axes, x: np.ndarray, variances: tuple[np.ndarray, np.ndarray], color: str, label: str
) -> None:
    """Draws both sides of Eq. 3; zeros are omitted, since the scale is logarithmic."""
    total, losses = variances
    mean, deviation = mean_and_std(np.where(total > 0, total, np.nan))
    bars = np.nan_to_num(np.minimum(deviation, 0.999 * mean))
    axes.plot(x, mean, "o-", color=color, markersize=5.5, linewidth=1.2, label=label)
    axes.errorbar(x, mean, bars, color=color, capsize=2, linestyle="")
    mean_loss = mean_and_std(np.where(losses > 0, losses, np.nan))[0]
    style = {"color": color, "markersize": 6.5, "markeredgewidth": 1.6, "zorder": 4}
    axes.plot(x + 0.045, mean_loss, "x", label=f"{label}: sum of losses", **style)


def _variance_title(study: StudyRecord) -> str:
    """States the ratio of stage 1's variance without GE to that with GE."""
    plain = [variant for variant in study.variants if variant.is_plain]
    using = [variant for variant in study.variants if "GE" in (variant.techniques or ())]
    means = [gradient_variances(study, group[0])[0] for group in (plain, using) if group]
    if len(means) < 2 or not all(values.size for values in means):
        return f"Variance of the gradient at each stage on {study.dataset_title}"
    ratio = means[0][:, 0].mean() / means[1][:, 0].mean()
    return f"Gradient variance at stage 1: {ratio:.1f} times as large without GE as with GE"
