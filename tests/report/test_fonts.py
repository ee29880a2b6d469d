"""Class names with characters that no installed font has."""

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from imta_jax.report import fonts
from imta_jax.report.rendering import figure_images


@pytest.fixture
def only_default(monkeypatch):
    """Simulates that no other font is installed."""
    monkeypatch.setattr(fonts, "FALLBACK_FAMILIES", ())
    fonts._drawable_characters.cache_clear()
    yield
    fonts._drawable_characters.cache_clear()


def test_name_that_no_font_draws_becomes_the_class_number(only_default):
    assert fonts.drawable_name("\N{CJK UNIFIED IDEOGRAPH-65E5}", 7) == "class 7"
    for name in ("na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve caf\xe9", "two words", "100%"):
        assert fonts.drawable_name(name, 7) == name


@pytest.mark.parametrize("space", "\t\n\r\v\f\u2028")
def test_spaces_without_a_glyph_become_spaces(only_default, space):
    assert fonts.drawable_name(f"two{space}words", 7) == "two words"


def test_installed_fallback_fonts_are_used(monkeypatch):
    monkeypatch.setattr(fonts, "FALLBACK_FAMILIES", ("DejaVu Serif", "not installed"))
    figure = Figure()
    figure.suptitle("title")
    figure_images(figure)
    families = [text.get_fontfamily() for text in figure.findobj(Text)]
    assert families and all(names == ["DejaVu Sans", "DejaVu Serif"] for names in families)


def test_control_characters_are_escaped():
    assert fonts.escape_control_characters("a\tb\x07\ud800 é日") == r"a\tb\x07\ud800 é日"
