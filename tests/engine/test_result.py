import dataclasses
import os

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits

from deblendrt.engine import result_file
from deblendrt.engine.flags import Flag
from deblendrt.engine.psf import fold
from deblendrt.engine.result import RENDER_TILE, DeblendResult
from deblendrt.engine.scene import make_scenes

BANDS = ("g", "r", "i")
SHAPES = [(30, 40), (25, 8), (12, 12)]
PER_SCENE = [RENDER_TILE + 9, 3, 0]


def gaussian(size, sigma):
    y, x = np.mgrid[:size, :size] - size // 2
    image = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return image / image.sum()


@pytest.fixture
def result():
    """Random coefficients in three scenes of two PSFs, with two sources that were not fitted."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(5, 11, 11)).astype(np.float32)
    folded = [fold(basis, np.stack([gaussian(9, s) for s in sigmas]), pad=2) for sigmas in ((1.3, 1.5, 2), (2, 2, 2))]
    centers = [rng.uniform(0, 1, (n, 2)) * [n_x - 1, n_y - 1] for n, (n_y, n_x) in zip(PER_SCENE, SHAPES, strict=True)]
    centers[0][2] = np.nan
    centers[1][1] = -50, 3
    mask = [np.zeros(shape, bool) for shape in SHAPES]
    mask[0][3:6] = True
    scenes = make_scenes([rng.normal(size=(3, *shape)) for shape in SHAPES], centers, variance=1.0, mask=mask,
                         bundle_bands=BANDS, bundle_pixel_scale=0.2, window_half=folded[0].half)
    n = sum(PER_SCENE)
    flags = np.concatenate([scene.flags for scene in scenes])
    unfitted = (flags & (Flag.OFF_IMAGE | Flag.CENTER_NOT_FINITE)) > 0

    def values(*shape):
        array = rng.normal(size=(n, *shape))
        array[unfitted] = np.nan
        return array

    center = np.concatenate(centers)
    return DeblendResult(
        bands=BANDS, source_start=np.cumsum([0, *PER_SCENE]), scene_index=np.repeat(np.arange(3), PER_SCENE),
        center=center, position=center + values(2), latent=values(9).astype(np.float32), flux=values(3),
        flux_err=values(3), map_flux=values(3), chi2=values(), n_pixel=np.where(unfitted, 0, 100),
        log_prior=values(), flags=flags, enclosed=values(3), scenes=scenes, scene_chi2=rng.random(3),
        scene_n_pixel=np.array([9, 8, 7]), objective=rng.random(3), coefficients=values(3, 5).astype(np.float32),
        anchor=np.concatenate([scene.anchors for scene in scenes]), folded=folded, folded_index=np.array([0, 1, 0]),
        model_name="toy", model_version="3",
    )


def test_sizes(result):
    assert (result.n_scene, result.n_source) == (3, sum(PER_SCENE))
    assert [result.sources(k) for k in (0, 1, -1)] == [slice(0, 41), slice(41, 44), slice(44, 44)]
    assert result.fitted.sum() == result.n_source - 2
    assert repr(result) == "DeblendResult(44 sources, 42 fitted, in 3 scenes, bands g, r, i)"


@pytest.mark.parametrize("i_scene", [0, 1, 2, -2])
def test_model_is_the_sum_of_stamps_cut_to_the_image(result, i_scene):
    n_y, n_x = SHAPES[i_scene]
    room = 100  # holds every stamp whole
    expected = np.zeros((3, n_y + 2 * room, n_x + 2 * room))
    for i in range(*result.sources(i_scene).indices(result.n_source)):
        stamp, (x, y) = result.stamps(i)
        w = stamp.shape[-1]
        expected[:, room + y : room + y + w, room + x : room + x + w] += stamp
    model = result.model(i_scene)
    assert model.shape == (3, n_y, n_x)
    assert model.dtype == np.float32
    np.testing.assert_allclose(model, expected[:, room:-room, room:-room], atol=1e-4)


def test_stamp_is_coefficients_times_folded_basis(result):
    for i in (0, 41, -1):
        stamp, (x, y) = result.stamps(i)
        folded = result.folded[result.folded_index[result.scene_index[i]]]
        expected = np.einsum("bk,bkp->bp", result.coefficients[i].astype(float), folded.phi.astype(float))
        np.testing.assert_allclose(stamp.reshape(3, -1), expected, atol=1e-5)
        assert (x + folded.half, y + folded.half) == tuple(result.anchor[i])
        assert stamp.dtype == np.float32


def test_sources_that_were_not_fitted_have_an_empty_model(result):
    for i in np.flatnonzero(~result.fitted):
        assert np.isnan(result.flux[i]).all()
        assert not result.stamps(i)[0].any()
    assert np.isfinite(result.model(0)).all()


def test_residual(result):
    scene = result.scenes[0]
    residual = result.residual(0)
    used = scene.inverse_variance > 0
    np.testing.assert_array_equal(residual[used], (scene.image - result.model(0))[used])
    assert not residual[~used].any()
    assert (~used).any()
    assert residual.dtype == np.float32


def test_reduced_chi2_without_pixels_is_nan(result):
    np.testing.assert_allclose(result.reduced_chi2[result.fitted], result.chi2[result.fitted] / 100)
    assert np.isnan(result.reduced_chi2[~result.fitted]).all()


@pytest.mark.parametrize(("method", "index"), [("model", 3), ("residual", -4), ("sources", 3), ("stamps", 44)])
def test_index_out_of_range(result, method, index):
    with pytest.raises(IndexError):
        getattr(result, method)(index)


def test_table(result):
    table = result.to_table()
    assert len(table) == result.n_source
    for b, band in enumerate(BANDS):
        np.testing.assert_array_equal(table[f"flux_{band}"].quantity.to_value(u.nJy), result.flux[:, b])
        np.testing.assert_array_equal(table[f"flux_err_{band}"], result.flux_err[:, b])
        np.testing.assert_array_equal(table[f"map_flux_{band}"], result.map_flux[:, b])
        np.testing.assert_array_equal(table[f"enclosed_{band}"], result.enclosed[:, b])
    np.testing.assert_array_equal(table["id"], np.arange(result.n_source))
    np.testing.assert_array_equal(table["scene"], result.scene_index)
    np.testing.assert_array_equal(table["x"], result.position[:, 0])
    np.testing.assert_array_equal(table["y_input"], result.center[:, 1])
    np.testing.assert_array_equal(table["flags"], result.flags)
    assert table["x"].unit == u.pixel
    assert table.meta["bundle"] == "toy"
    assert all(table[name].ndim == 1 for name in table.colnames)
    table["flux_g"][:] = 0  # a copy
    assert result.flux[0, 0] != 0


@pytest.mark.parametrize("name", ["out.fits", "out.fits.gz"])
def test_file_round_trip(result, tmp_path, name):
    path = tmp_path / name
    result.write(path, images=True)
    table, back = result.to_table(), DeblendResult.read_catalog(path)
    for column in table.colnames:
        np.testing.assert_array_equal(back[column], table[column])
        assert back[column].unit == table[column].unit
    np.testing.assert_array_equal(back["latent"], result.latent)
    assert back.meta["MODELVER"] == "3"
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "CATALOG", "SCENES", "FLAGS",
                                              *(f"{kind}_{k}" for k in range(3) for kind in ("MODEL", "RESIDUAL"))]
        for k in range(3):
            np.testing.assert_array_equal(hdus[f"MODEL_{k}"].data, result.model(k))
            np.testing.assert_array_equal(hdus[f"RESIDUAL_{k}"].data, result.residual(k))
            assert hdus[f"MODEL_{k}"].header["BUNIT"] == "nJy"
        np.testing.assert_array_equal(hdus["SCENES"].data["objective"], result.objective)
        legend = {row["name"]: row["bit"] for row in hdus["FLAGS"].data}
        assert legend == {flag.name: flag.bit_length() - 1 for flag in Flag}
    assert os.listdir(tmp_path) == [name]


def test_empty_result_is_written(result, tmp_path):
    changes = {f.name: getattr(result, f.name)[:0] for f in dataclasses.fields(result)
               if f.name not in ("bands", "source_start", "model_name", "model_version")}
    empty = dataclasses.replace(result, source_start=np.zeros(1, np.int64), **changes)
    empty.write(tmp_path / "empty.fits", images=True)
    back = DeblendResult.read_catalog(tmp_path / "empty.fits")
    assert len(back) == 0
    assert "flux_r" in back.colnames


def test_an_existing_file_is_kept_unless_told(result, tmp_path):
    path = tmp_path / "out.fits"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        result.write(path)
    assert path.read_text() == "mine"
    result.write(path, overwrite=True)
    assert len(DeblendResult.read_catalog(path)) == result.n_source


def test_a_failed_write_leaves_nothing(result, tmp_path, monkeypatch):
    path = tmp_path / "out.fits"
    result.write(path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(result_file.fits, "ImageHDU", fail)
    with pytest.raises(OSError, match="disk full"):
        result.write(path, images=True, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.fits"]
