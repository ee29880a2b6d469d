"""Names in figures: fonts for scripts that matplotlib's own font lacks.

Class names may be in any script. Installed fonts are searched for the missing characters; a name
that no font can draw is replaced by the class number.
"""

from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

DEFAULT_FAMILY = "DejaVu Sans"
# Fonts with many scripts, the usual ones of Linux, macOS and Windows.
FALLBACK_FAMILIES = (
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "Arial Unicode MS",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Unifont",
)


def use_fallback_fonts(figure: Figure) -> None:
    """Draws characters that matplotlib's own font lacks with other fonts, if any is installed."""
    families = _families()
    if len(families) > 1:
        for text in figure.findobj(Text):
            text.set_fontfamily(families)


def escape_control_characters(text: str) -> str:
    r"""The text with escapes, such as `\t`, for characters that cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def drawable_name(name: str, number: int) -> str:
    """The name of a class, or "class NUMBER" if it has characters that no font has.

    Tabs and other spaces become spaces.
    """
    name = "".join(" " if character.isspace() else character for character in name)
    drawn = {ord(character) for character in name}
    return name if drawn <= _drawable_characters() else f"class {number}"


def _families() -> list[str]:
    """Matplotlib's own family, then the fallbacks that are installed."""
    return [DEFAULT_FAMILY, *(name for name in FALLBACK_FAMILIES if _characters(name))]


@cache
def _drawable_characters() -> frozenset[int]:
    return frozenset().union(*map(_characters, _families()))


@cache
def _characters(family: str) -> frozenset[int]:
    """The code points of an installed font; empty if it is not installed."""
    paths = [font.fname for font in font_manager.fontManager.ttflist if font.name == family]
    return frozenset(FT2Font(paths[0]).get_charmap()) if paths else frozenset()
