"""Stored programs, and plans of programs that are not compiled."""

from pathlib import Path

import pytest

HLO = Path(__file__).parents[1] / "data" / "hlo"


@pytest.fixture
def hlo():
    """A function from the name of a stored program to its text."""
    return lambda name: (HLO / f"{name}.txt").read_text()
