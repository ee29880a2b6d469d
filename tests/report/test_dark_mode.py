"""Figures in dark mode: the same layout, readable on a dark background."""

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from imta_jax.report.dark_mode import BACKGROUND, FOREGROUND, dark_color, use_dark_colors
from imta_jax.report.rendering import figure_images
from imta_jax.report.style import ADAPTIVE, INK, LUMA, MUTED, ON_DARK, ON_LIGHT, WRONG, exit_colors


def luma(color):
    return float(np.array(to_rgb(color)) @ LUMA)


def test_white_becomes_the_background_and_ink_the_foreground():
    assert to_hex(dark_color("white")) == BACKGROUND
    assert np.abs(np.array(to_rgb(dark_color(INK)[:3])) - to_rgb(FOREGROUND)).max() < 0.02
    assert luma(dark_color(MUTED)[:3]) > luma(BACKGROUND) + 0.3


@pytest.mark.parametrize("color", [ADAPTIVE, WRONG, *exit_colors(8)])
def test_colors_are_light_enough_for_the_background(color):
    assert luma(dark_color(color)[:3]) >= luma(BACKGROUND) + 0.3
    if luma(color) > 0.5:
        assert to_hex(dark_color(color)) == to_hex(color)


def test_opacity_and_texts_on_colors_are_unchanged():
    assert dark_color((0.2, 0.2, 0.2, 0.25))[3] == 0.25
    for color in (ON_DARK, ON_LIGHT):
        assert to_hex(dark_color(color)) == color


def test_layout_is_the_same_and_both_files_differ():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o-", color=INK, markerfacecolor="white")
    axes.bar([0, 1], [1, 2], color=exit_colors(2), edgecolor="white")
    axes.fill_between([0, 1], [0, 1], color=ADAPTIVE, alpha=0.2)
    images = figure_images(figure)
    light, dark = (
        matplotlib.image.imread(io.BytesIO(file)) for file in (images.light, images.dark)
    )
    assert light.shape == dark.shape
    assert to_hex(light[0, 0, :3]) == "#ffffff" and to_hex(dark[0, 0, :3]) == BACKGROUND


def test_colors_change_once():
    figure = Figure()
    line = figure.subplots().plot([0, 1], color=INK)[0]
    use_dark_colors(figure)
    assert luma(to_hex(line.get_color())) > 0.8
