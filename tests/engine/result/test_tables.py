import os
import sys

import numpy as np
import pytest
from astropy import units as u
from toy_scenes import changed

from deblendrt.engine.result.fields import QUANTITIES, entries
from deblendrt.engine.scene.flags import Flag

BANDS = ("g", "i")
DIMENSIONLESS = ("id", "scene", "star", "star_probability", "blend", "blendedness", "enclosed", "e1", "e2", "chi2",
                 "n_pixel", "reduced_chi2", "log_prior", "flags", "trusted")


def test_columns(result):
    table = result.to_table()
    per_band = [f"{name}_{band}" for band in BANDS for name in (
        "flux", "flux_err", "flux_sys_err", "map_flux", "redistributed_flux", "redistributed_flux_err", "aperture_flux",
        "aperture_flux_err", "blendedness", "flux_overlap", "max_overlap", "enclosed")]
    assert table.colnames == [
        "id", "scene", "star", "star_probability", "blend", "x", "y", "x_err", "y_err", "x_input", "y_input",
        *per_band, "ixx", "iyy", "ixy", "e1", "e2", "e1_err", "e2_err", "chi2", "n_pixel", "reduced_chi2", "log_prior",
        "flags", "trusted"]
    for column in table.itercols():
        assert column.description
        assert column.ndim == 1
        assert (column.unit is None) == column.name.startswith(DIMENSIONLESS)
    assert table["flux_g"].unit == u.nJy
    assert table["x_err"].unit == u.pixel
    assert table["ixy"].unit == u.pixel**2


def test_values(result):
    table = result.to_table()
    np.testing.assert_array_equal(table["id"], np.arange(result.n_source))
    np.testing.assert_array_equal(table["scene"], result.scene_index)
    for b, band in enumerate(BANDS):
        for name in (name for name, q in QUANTITIES.items() if q.by_band):
            np.testing.assert_array_equal(table[f"{name}_{band}"], getattr(result, name)[:, b])
    for name, values in {"x": result.position[:, 0], "y_err": result.position_err[:, 1], "y_input": result.center[:, 1],
                         "iyy": result.moments[:, 1], "e2": result.ellipticity[:, 1], "flags": result.flags,
                         "e1_err": result.ellipticity_err[:, 0], "reduced_chi2": result.reduced_chi2}.items():
        np.testing.assert_array_equal(table[name], values)
    assert table.meta["bundle"] == "toy"
    assert table.meta["aperture"] == 1.2
    assert all(len(key) <= 8 for key in table.meta)
    table["flux_g"][:] = 0  # a copy
    assert result.flux[0, 0] != 0


def test_trusted_is_a_column(result):
    expected = result.fitted & ((result.flags & (Flag.POOR_FIT | Flag.NOT_CONVERGED)) == 0)
    assert 0 < expected.sum() < result.fitted.sum()
    np.testing.assert_array_equal(result.trusted, expected)
    table = result.to_table()
    assert table.colnames[-1] == "trusted"
    np.testing.assert_array_equal(table["trusted"], result.trusted)


def test_every_entry_is_one_column(result):
    assert [entry.column for entry in entries(BANDS)] == result.to_table().colnames


def test_unknown_style(result):
    with pytest.raises(ValueError, match=r"style: expected one of \['deblendrt', 'rubin'\], got 'hsc'"):
        result.to_table("hsc")


def test_rubin(result):
    result = changed(result, "flags", 5, result.flags[5] | Flag.BAND_MISSING | Flag.EDGE)
    table = result.to_table(style="rubin")
    assert len(table) == result.n_source
    assert all(column.description and column.ndim == 1 for column in table.itercols())
    np.testing.assert_array_equal(table["id"], np.arange(result.n_source))
    np.testing.assert_array_equal(table["parent"], result.blend)
    np.testing.assert_array_equal(table["deblend_blendId"], result.blend)
    np.testing.assert_array_equal(table["deblend_failed"], ~result.fitted)
    np.testing.assert_array_equal(table["deblend_chi2"], result.reduced_chi2)
    np.testing.assert_array_equal(table["deblend_edgePixels"], (result.flags & Flag.EDGE) > 0)
    np.testing.assert_array_equal(table["deblend_incompleteData"], (result.flags & Flag.BAND_MISSING) > 0)
    assert not table["deblend_skipped"].any()
    assert not table["deblend_nChild"].any()
    assert (table["deblend_nPeaks"] == 1).all()
    assert table["deblend_iterations"].tolist() == [15 if fitted else 0 for fitted in result.fitted]
    assert table["deblend_error"][[0, 2, 5, -1]].tolist() == ["", "CENTER_NOT_FINITE", "NO_DATA", "OFF_IMAGE"]


def test_rubin_blends(result):
    table = result.to_table(style="rubin")
    moving = (result.flags & Flag.NOT_CONVERGED) > 0
    assert moving.any()
    for i, k in enumerate(result.blend):
        members = result.blend == k if k >= 0 else np.zeros(result.n_source, bool)
        for name in ("deblend_blendNChild", "deblend_parentNPeaks", "deblend_parentNChild"):
            assert table[name][i] == members.sum()
        assert table["deblend_blendConvergenceFailedFlag"][i] == (members & moving).any()
    keys = set(zip(table["parent"].tolist(), table["deblend_peakId"].tolist(), strict=True))
    assert len(keys) == result.n_source


def test_rubin_peaks_are_whole_pixels(result):
    result = changed(result, "center", 3, (7.6, 1e300))
    table = result.to_table(style="rubin")
    assert table["deblend_peak_center_x"].dtype == np.int32
    assert (table["deblend_peak_center_x"][3], table["deblend_peak_center_y"][3]) == (8, 2**31 - 1)
    assert (table["deblend_peak_center_x"][-1], table["deblend_peak_center_y"][-1]) == (-50, 3)
    assert table["deblend_peak_center_x"][2] == 0


def test_rubin_bands(result):
    table = result.to_table(style="rubin")
    fitted = result.fitted
    for b, band in enumerate(BANDS):
        for name, field in {"flux": "flux", "fluxErr": "flux_err", "blendedness": "blendedness",
                            "fluxOverlap": "flux_overlap", "maxOverlap": "max_overlap"}.items():
            np.testing.assert_array_equal(table[f"{band}_deblend_{name}"], getattr(result, field)[:, b])
        fraction = table[f"{band}_deblend_fluxOverlapFraction"]
        np.testing.assert_allclose(fraction[fitted], (result.flux_overlap / result.map_flux)[fitted, b])
        assert np.isnan(fraction[~fitted]).all()
        np.testing.assert_array_equal(table[f"{band}_deblend_zeroFlux"], ~fitted)
        assert table[f"{band}_deblend_flux"].unit == u.nJy
        assert f"{band}_deblend_scarletFlux" not in table.colnames


def test_no_source(random_result):
    empty = random_result([(12, 12)], [0], [None])
    assert len(empty.to_table()) == 0
    assert len(empty.to_table("rubin")) == 0
    assert random_result([], [], []).to_table("rubin").colnames == empty.to_table("rubin").colnames


def test_parquet(result, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "catalog.parquet"
    result.write(path)
    table, back = result.to_table(), parquet.read_table(path)
    assert back.column_names == table.colnames
    for column in table.itercols():
        np.testing.assert_array_equal(back[column.name].to_numpy(), column)
        about = {key.decode(): value.decode() for key, value in back.schema.field(column.name).metadata.items()}
        assert about.pop("description") == column.description
        assert about == ({} if column.unit is None else {"unit": str(column.unit)})
        assert back[column.name].null_count == 0  # NaN stays NaN
    assert back.schema.metadata[b"modelsha"].decode() == result.model_sha256
    assert sorted(os.listdir(tmp_path)) == ["catalog.parquet", "toy"]  # the bundle
    with pytest.raises(FileExistsError, match="overwrite=True"):
        result.write(path)
    result.write(path, overwrite=True)
    with pytest.raises(ValueError, match="images: a Parquet file holds the catalogue only"):
        result.write(path, images=True, overwrite=True)


def test_parquet_without_pyarrow(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "deblendrt\[parquet\]"'):
        result.write(tmp_path / "catalog.parquet")
    assert not (tmp_path / "catalog.parquet").exists()
