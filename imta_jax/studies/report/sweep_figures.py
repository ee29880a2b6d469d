"""Figures of the distillation sweep (alpha x temperature) and of gradient variances (Eq. 3)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from imta_jax.report.style import INK, MUTED, new_figure, style_axes, text_color_on
from imta_jax.studies.report.record import Arm, StudyRecord, mean_and_std
from imta_jax.studies.report.style import (
    add_legend,
    arm_colors,
    mark_figure,
    name_absent,
    say_empty,
)
from imta_jax.studies.report.variant_tables import (
    SETTINGS,
    gradient_variances,
    mean_over_exits,
    nearly_best,
    setting_text,
)

ALPHA, TEMPERATURE = "phase_two.alpha", "phase_two.temperature"
PANELS_PER_ROW = 3


def figure_distillation(study: StudyRecord) -> Figure:
    """Validation top-1 (mean over exits and seeds) by alpha and temperature.

    One panel per teacher and convention of the KL divergence, all on one scale of color; the best
    cell is framed, and one without a run says so. Arms that set neither are named beneath.
    """
    panels = sweep_panels(study)
    rows = -(-len(panels) // PANELS_PER_ROW) or 1
    columns = min(max(len(panels), 1), PANELS_PER_ROW)
    figure = new_figure(max(8.4, 1.2 + 3.6 * columns), 1.4 + 3.2 * rows, _sweep_finding(study))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    values = [_validation(study, arm) for cells in panels.values() for arm in cells.values()]
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
        say_empty(grid[0], "no arm sets alpha and temperature")
    mark_figure(figure, study, f"{_other_arms(study, panels)} {nearly_best(study)}".strip())
    return figure


def sweep_panels(study: StudyRecord) -> dict[str, dict[tuple[float, float], Arm]]:
    """The arms by (alpha, temperature), grouped by all else that they set; keyed by its text."""
    panels: dict[str, dict[tuple[float, float], Arm]] = {}
    for arm in study.arms:
        if ALPHA in arm.overrides and TEMPERATURE in arm.overrides:
            others = {k: v for k, v in arm.overrides.items() if k not in (ALPHA, TEMPERATURE)}
            key = ", ".join(filter(None, (_said(k, v) for k, v in others.items())))
            cell = float(arm.overrides[ALPHA]), float(arm.overrides[TEMPERATURE])
            panels.setdefault(key or "alpha and temperature", {})[cell] = arm
    return panels


def _said(field: str, value: object) -> str:
    """A setting in a panel's title; nothing of a T² that is not there."""
    known = {
        ("phase_two.reduction", "batch"): "KL summed",
        ("phase_two.reduction", "elements"): "KL averaged",
        ("phase_two.teacher", "own_last_exit"): "own last exit",
        ("phase_two.teacher", "phase_one_last_exit"): "phase-I last exit",
        ("phase_two.temperature_squared", True): "times T²",
        ("phase_two.temperature_squared", False): "",
    }
    name = SETTINGS.get(field, field.split(".")[-1].replace("_", " "))
    return known.get((field, value), f"{name} {setting_text(value)}")


def _validation(study: StudyRecord, arm: Arm) -> float:
    values = mean_over_exits(study.top1(arm, "validation"))
    return float(values.mean()) if len(values) else float("nan")


def _color_limits(values: np.ndarray) -> tuple[float, float]:
    """The range of what is known, at least half a point: tenths are noise, not to be magnified."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    middle, half = (known.max() + known.min()) / 2, max(np.ptp(known), 0.5) / 2
    return middle - half, middle + half


def _draw_heatmap(
    axes: Axes,
    study: StudyRecord,
    title: str,
    cells: dict[tuple[float, float], Arm],
    limits: tuple[float, float],
) -> AxesImage:
    alphas, temperatures = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    values = np.full((len(alphas), len(temperatures)), np.nan)
    for (alpha, temperature), arm in cells.items():
        values[alphas.index(alpha), temperatures.index(temperature)] = _validation(study, arm)
    image = axes.imshow(values, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
    style_axes(
        axes, title=title, x="temperature T", y="alpha (weight of the cross-entropy)", grid=""
    )
    axes.title.set_fontsize(8.5)
    axes.set_xticks(range(len(temperatures)), [f"{value:g}" for value in temperatures])
    axes.set_yticks(range(len(alphas)), [f"{value:g}" for value in alphas])
    for (alpha, temperature), arm in cells.items():
        place = temperatures.index(temperature), alphas.index(alpha)
        _write_cell(axes, study, arm, place, image)
    return image


def _write_cell(
    axes: Axes, study: StudyRecord, arm: Arm, place: tuple[int, int], image: AxesImage
) -> None:
    value = _validation(study, arm)
    known = np.isfinite(value)
    text = f"{value:.2f}" if known else study.state(arm).replace(" ", "\n")
    color = text_color_on(image.to_rgba(value)[:3]) if known else MUTED
    axes.text(*place, text, ha="center", va="center", fontsize=8.5, color=color)
    if arm == _best(study):
        corner = place[0] - 0.5, place[1] - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#c0392b", linewidth=2.5))


def _best(study: StudyRecord) -> Arm | None:
    """The setting with the best validation top-1, of all panels."""
    arms = [arm for cells in sweep_panels(study).values() for arm in cells.values()]
    done = [arm for arm in arms if study.done(arm)]
    return max(done, key=lambda arm: _validation(study, arm), default=None)


def _sweep_finding(study: StudyRecord) -> str:
    best = _best(study)
    if best is None:
        return f"Alpha and temperature on {study.dataset_title}"
    alpha, temperature = (setting_text(best.overrides[name]) for name in (ALPHA, TEMPERATURE))
    return f"Best on validation images: alpha {alpha}, temperature {temperature}"


def _other_arms(study: StudyRecord, panels: dict[str, dict[tuple[float, float], Arm]]) -> str:
    shown = {arm.name for cells in panels.values() for arm in cells.values()}
    others = [arm for arm in study.arms if arm.name not in shown]
    texts = [f"{arm.label} {_validation(study, arm):.2f}" for arm in others if study.done(arm)]
    texts += [f"{arm.label} {study.state(arm)}" for arm in others if not study.done(arm)]
    return f"For comparison: {', '.join(texts)}." if texts else ""


def figure_gradient_variance(study: StudyRecord) -> Figure:
    """Both sides of Eq. 3 at each stage's output, on a logarithmic scale, per arm.

    Lines with circles: the variance over images of the summed loss's gradient; crosses: the sum
    of the losses' own variances, which it equals where their gradients are uncorrelated.
    """
    figure = new_figure(8.4, 5.2, _variance_finding(study))
    axes = figure.subplots()
    style_axes(axes, x="output of stage", y="variance of the gradient over images")
    axes.set_yscale("log")
    colors, most, seeds = arm_colors(study), 1, 1
    for place, arm in enumerate(study.arms):
        total, losses = gradient_variances(study, arm)
        seeds = max(seeds, len(total))
        if not total.size:
            name_absent(axes, study, arm, colors[arm.name])
            continue
        # Side by side, since crosses and bars of several arms may coincide.
        x = np.arange(1, total.shape[1] + 1) + 0.11 * (place - (len(study.arms) - 1) / 2)
        _draw_variance(axes, x, total, losses, colors[arm.name], arm.label)
        most = max(most, total.shape[1])
    axes.set_xticks(range(1, most + 1))
    add_legend(axes, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    bars = ", bars one standard deviation over seeds" if seeds > 1 else ""
    more = f"Circles: the summed loss's gradient{bars}."
    mark_figure(figure, study, f"{more} Crosses: sum of the losses' own variances (Eq. 3).")
    return figure


def _draw_variance(
    axes: Axes, x: np.ndarray, total: np.ndarray, losses: np.ndarray, color: str, label: str
) -> None:
    """Values of 0, which a logarithm has no place for, are left out."""
    mean, deviation = mean_and_std(np.where(total > 0, total, np.nan))
    bars = np.nan_to_num(np.minimum(deviation, 0.999 * mean))
    axes.plot(x, mean, "o-", color=color, markersize=5.5, linewidth=1.2, label=label)
    axes.errorbar(x, mean, bars, color=color, capsize=2, linestyle="")
    own = mean_and_std(np.where(losses > 0, losses, np.nan))[0]
    style = {"color": color, "markersize": 6.5, "markeredgewidth": 1.6, "zorder": 4}
    axes.plot(x + 0.045, own, "x", label=f"{label}: losses apart", **style)


def _variance_finding(study: StudyRecord) -> str:
    """Stage 1's variance without GE, as a multiple of that with it."""
    plain = [arm for arm in study.arms if arm.is_plain]
    using = [arm for arm in study.arms if "GE" in (arm.techniques or ())]
    both = [gradient_variances(study, arms[0])[0] for arms in (plain, using) if arms]
    if len(both) < 2 or not all(values.size for values in both):
        return f"Variance of the gradient at each stage on {study.dataset_title}"
    ratio = both[0][:, 0].mean() / both[1][:, 0].mean()
    return f"The variance of stage 1's gradient: {ratio:.1f} times as large without GE as with it"
