"""Recolors a figure for pages in dark mode.

Figures are drawn in the colors of `style.py`. Afterwards, grays are inverted, and colors that are
too dark for a dark background are lightened. Texts inside colored areas keep their colors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text

from imta_jax.report.style import INK, LUMA, ON_DARK, ON_LIGHT

BACKGROUND, FOREGROUND = "#1d2125", "#e8eaed"
_GRAY_SATURATION = 0.12  # Largest difference of two channels of a gray.
_LEAST_LUMA = 0.48


def use_dark_colors(figure: Figure) -> None:
    """Changes the colors of a figure that has been drawn. Images keep their pixels."""
    artists = [figure.patch, *figure.findobj()]
    arrows = [a.arrow_patch for a in artists if isinstance(a, Annotation) and a.arrow_patch]
    # By identity: an artist can be found twice, and its colors must change once.
    for artist in {id(artist): artist for artist in [*artists, *arrows]}.values():
        _recolor(artist)


def dark_color(color: Any) -> tuple[float, float, float, float]:
    """The color in dark mode, as RGBA in 0..1."""
    *rgb, alpha = to_rgba(color)
    channels = np.array(rgb)
    if to_hex(color) in (ON_DARK, ON_LIGHT):
        return to_rgba(color)
    if np.ptp(channels) <= _GRAY_SATURATION:
        return *_inverted(float(channels @ LUMA)), alpha
    missing = max(0.0, _LEAST_LUMA - float(channels @ LUMA))
    towards_white = missing / (1.0 - float(channels @ LUMA))
    red, green, blue = channels + towards_white * (1.0 - channels)
    return red, green, blue, alpha


def _inverted(luma: float) -> tuple[float, float, float]:
    """Maps white to the background and `INK` to the foreground."""
    darkest = float(np.array(to_rgba(INK)[:3]) @ LUMA)
    position = (1.0 - luma) / (1.0 - darkest)
    ends = np.array([to_rgba(BACKGROUND)[:3], to_rgba(FOREGROUND)[:3]])
    red, green, blue = np.clip(ends[0] + position * (ends[1] - ends[0]), 0.0, 1.0)
    return red, green, blue


def _recolor(artist: Artist) -> None:
    match artist:
        case Text():
            artist.set_color(dark_color(artist.get_color()))
            if artist.get_path_effects():
                artist.set_path_effects([withStroke(linewidth=3, foreground=BACKGROUND)])
        case Line2D():
            marker = artist.get_markerfacecolor(), artist.get_markeredgecolor()
            artist.set_color(dark_color(artist.get_color()))
            artist.set_markerfacecolor(dark_color(marker[0]))
            artist.set_markeredgecolor(dark_color(marker[1]))
        case Patch():
            face, edge = artist.get_facecolor(), artist.get_edgecolor()
            artist.set_facecolor(dark_color(face))
            artist.set_edgecolor(dark_color(edge))
        case Collection():
            _recolor_all(artist.get_facecolor(), artist.set_facecolor)
            _recolor_all(artist.get_edgecolor(), artist.set_edgecolor)


def _recolor_all(colors: Any, change: Callable[[Any], None]) -> None:
    """Recolors a collection with an array of colors, [n, 4]; n can be 0."""
    if len(colors):
        change([dark_color(color) for color in np.reshape(colors, (-1, 4))])
