"""The documentation's tables follow the program, and its docstrings become valid reStructuredText."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.flags import DESCRIPTIONS, Flag
from deblendrt.engine.solve import constants

DOCS = Path(__file__).parents[2] / "docs"


def test_every_flag_has_a_row() -> None:
    pytest.importorskip("sphinx")
    table = runpy.run_path(str(DOCS / "extensions" / "tables.py"))["flags"]()
    for flag in Flag:
        assert f"| {flag.bit_length() - 1} | `{flag.name}` | {DESCRIPTIONS[flag]} |" in table


@pytest.mark.parametrize(("what", "text", "expected"), [
    ("function", "where |x| < c, of flux_<band>", r"where \|x\| < c, of flux\_<band>"),
    ("function", "see `flux_` and ``a|b``", "see `flux_` and ``a|b``"),
    ("module", "L is\n\n    L = x\n\n    y = z\n\nso", "L is\n\n.. code-block:: text\n\n    L = x\n\n    y = z\n\nso"),
    ("class", "L is\n\n    L = x", "L is\n\n    L = x"),
])
def test_plain_text_is_kept(what: str, text: str, expected: str) -> None:
    lines = text.split("\n")
    runpy.run_path(str(DOCS / "conf.py"))["keep_plain_text"](None, what, "", None, None, lines)
    assert "\n".join(lines) == expected


def test_the_docstring_of_deblend_batch_has_the_numbers_of_iterations() -> None:
    text = " ".join((Deblender.deblend_batch.__doc__ or "").split())
    assert (f"Default: {constants.ITERATIONS['gauss_newton']} (Gauss-Newton) or {constants.ITERATIONS['adam']} "
            "(Adam)") in text
    words = {5: "five"}
    assert f"at most {words[sum(constants.FURTHER_ROUNDS)]} times this number" in text
