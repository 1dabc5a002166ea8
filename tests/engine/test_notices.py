"""Notices: the category, the line that they point to, and their texts for the command line."""

from __future__ import annotations

import warnings

import pytest

from deblendrt import engine
from deblendrt.engine.adapters.image_inputs import gathered_notices
from deblendrt.engine.units import notify


def test_category_and_place() -> None:
    assert issubclass(engine.InputWarning, UserWarning)
    with pytest.warns(engine.InputWarning, match="a plane was left out") as caught:
        notify("a plane was left out")
    assert caught[0].filename == __file__


def test_gathered() -> None:
    with gathered_notices() as texts:
        notify("one")
        notify("one")
        notify("two")
        with pytest.warns(RuntimeWarning, match="another"):  # other warnings are not swallowed
            warnings.warn("another", RuntimeWarning, stacklevel=1)
    assert texts == ["one", "two"]


def test_other_warnings_are_shown() -> None:
    with pytest.warns(RuntimeWarning, match="another") as caught:
        _warn_inside()
    assert len(caught) == 1


def _warn_inside() -> None:
    with gathered_notices():
        warnings.warn("another", RuntimeWarning, stacklevel=1)
