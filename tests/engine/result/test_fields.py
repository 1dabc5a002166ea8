"""The table of reported quantities: the arrays of results follow it, and so do the places that write them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from toy_scenes import VARIANCE

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.fields import QUANTITIES, TRUSTED, Quantity, entries, file_columns
from deblendrt.engine.result.result import DeblendResult

README = Path(__file__).parents[3] / "README.md"
BANDS = ("g", "i")
LONGEST = 68  # letters of a string on one card of a FITS header


@pytest.fixture(scope="module")
def unfitted(toy_deblender: Deblender) -> DeblendResult:
    image = np.zeros((len(toy_deblender.bundle.bands), 20, 20))
    return toy_deblender.deblend_batch(image, [(-30, 5), (np.nan, 4)], variance=VARIANCE, psf="nominal")


@pytest.mark.parametrize("q", QUANTITIES.values(), ids=QUANTITIES)
def test_arrays_have_the_type_and_shape_of_the_table(q: Quantity, unfitted: DeblendResult,
                                                     toy_deblender: Deblender) -> None:
    bundle = toy_deblender.bundle
    lengths = {"n_source": 2, "n_scene": 1, "n_band": bundle.n_band, "n_basis": bundle.n_basis,
               "n_latent": bundle.n_latent}
    value = getattr(unfitted, q.name)
    assert value.dtype == q.dtype
    assert value.shape == q.empty(**lengths).shape
    if q.solved and q.axes[0] == "n_source" and q.name != "flags":
        np.testing.assert_array_equal(value, q.empty(**lengths))


@pytest.mark.parametrize("q", QUANTITIES.values(), ids=QUANTITIES)
def test_entries_are_whole(q: Quantity) -> None:
    assert q.meaning
    assert q.file in ("CATALOG", "FIT", "SCENES")
    assert (q.axes[0] == "n_scene") == (q.file == "SCENES")
    units.Unit(q.unit)
    n = int(q.axes[-1]) if q.axes[-1].isdecimal() else 1
    assert len(q.columns) == n
    assert len(q.rubin) in (0, n)
    assert len(q.alert) in (0, n)
    assert all(len(meaning) + len("g: ") * q.by_band <= LONGEST for _, meaning in q.columns)


def test_every_quantity_is_written_once() -> None:
    columns = [entry.field for entry in entries(BANDS)]
    columns += [entry.field for table in ("CATALOG", "FIT", "SCENES") for entry in file_columns(table)]
    assert set(columns) == {*QUANTITIES, TRUSTED.field}
    assert columns.count(TRUSTED.field) == 1
    for name, q in QUANTITIES.items():
        assert columns.count(name) == (len(BANDS) if q.by_band else len(q.columns))


def test_a_result_is_its_table() -> None:
    """The arrays of a result with a row per source or scene are the quantities, and no others."""
    listed = {field.name for field in dataclasses.fields(DeblendResult) if "meaning" in field.metadata}
    assert listed == set(QUANTITIES)


def test_readme_names_what_there_is() -> None:
    table = README.read_text().split("| `result.` | shape | |\n")[1].split("\n\n")[0]
    quantities = set()
    for row in table.splitlines()[1:]:
        names, shape, _ = (cell.strip() for cell in row.strip("|").split("|", 2))
        for name in re.findall(r"`(\w+)", names):
            found = getattr(DeblendResult, name, None)
            assert name in QUANTITIES or callable(found) or isinstance(found, property), name
            if name in QUANTITIES and shape:
                q = QUANTITIES[name]
                quantities.add(name)
                axes = ", ".join(axis.removeprefix("n_").replace("source", "n") for axis in q.axes)
                assert f"({axes},)" in shape or f"({axes})" in shape, name
                assert q.unit.replace("2", "²") in shape, name
    assert len(quantities) > 10
