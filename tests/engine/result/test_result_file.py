"""Results written to FITS and read back, whole and in parts."""

import dataclasses
import gzip
import os

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from toy_model import gaussian_psf
from toy_scenes import VARIANCE, make_scene

from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.result import result_file
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.scene.images import GivenImages, ReadyImages

TABLES = ["PRIMARY", "CATALOG", "FIT", "SCENES", "BLENDS", "BLEND_ROW", "BLEND_FLUX_COV", "PSF", "PSF_SIZE", "FLAGS"]


@pytest.fixture
def many(random_result):
    """Scenes with three PSFs of two sizes and without one, two of them equal in two arrays, one scene empty."""
    a = np.stack([gaussian_psf(fwhm, 13) for fwhm in (3.8, 4.5)])
    b = np.stack([gaussian_psf(fwhm, 9) for fwhm in (3.5, 3.3)])
    return random_result([(20, 25), (18, 12), (12, 12), (15, 15), (30, 9)], [9, 5, 0, 7, 4],
                         [a, None, b, a.copy(), b], seed=3)


def assert_equal(a, b, where="result"):
    """The same to the bit, but for byte order and array identity."""
    if isinstance(a, ReadyImages | GivenImages):
        for name in ("image", "inverse_variance"):
            assert_equal(getattr(a, name), getattr(b, name), f"{where}.{name}")
    elif dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, FoldedBases):
        assert_equal(a.images, b.images, where)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for k, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{where}[{k}]")
    elif isinstance(a, np.ndarray):
        assert (a.shape, a.dtype) == (b.shape, b.dtype.newbyteorder("=")), where
        assert a.tobytes() == b.astype(a.dtype).tobytes(), where
    else:
        np.testing.assert_equal(b, a, where)


@pytest.mark.parametrize("name", ["out.fits", "out.fits.gz"])
def test_round_trip(many, toy_bundle, tmp_path, name):
    many.write(tmp_path / name, images=True)
    back = DeblendResult.read(tmp_path / name, model=toy_bundle)
    assert_equal(many, back)
    assert back.folded_index.tolist() == [0] * 9 + [1] * 5 + [0] * 7 + [2] * 4
    assert back.scenes[2].psf is back.scenes[4].psf
    for i in range(many.n_source):
        assert_equal(many.stamps(i)[0], back.stamps(i)[0])
        assert many.stamps(i)[1] == back.stamps(i)[1]
    for k in range(many.n_scene):
        assert_equal(many.model(k), back.model(k))
        assert_equal(many.residual(k), back.residual(k))


def test_comparison_can_fail(many):
    flux = many.flux.copy()
    flux[0, 0] = np.nextafter(flux[0, 0], np.inf)
    with pytest.raises(AssertionError, match=r"result\.flux"):
        assert_equal(many, dataclasses.replace(many, flux=flux))


def test_without_images(many, toy_bundle, tmp_path):
    many.write(tmp_path / "out.fits")
    back = DeblendResult.read(tmp_path / "out.fits", model=toy_bundle)
    for k, scene in enumerate(back.scenes):
        assert scene.shape == many.scenes[k].shape
        assert scene.image.strides == (0, 0, 0)  # not allocated
        assert_equal(many.model(k), back.model(k))
        with pytest.raises(ValueError, match="residual: the result was read from a file without images"):
            back.residual(k)
    with pytest.raises(ValueError, match="without images"):
        back.write(tmp_path / "again.fits", images=True)
    assert sorted(os.listdir(tmp_path)) == ["out.fits", "toy"]
    empty = [np.zeros_like(scene.image) for scene in many.scenes]
    scenes = [dataclasses.replace(s, images=ReadyImages(e, e)) for s, e in zip(many.scenes, empty, strict=True)]
    assert_equal(dataclasses.replace(many, scenes=scenes, has_images=False), back)


@pytest.mark.parametrize("images", [True, False])
def test_one_blend(many, toy_bundle, tmp_path, images):
    path = tmp_path / "out.fits"
    many.write(path, images=images)
    for k, covariance in enumerate(many.blend_flux_cov):
        rows = np.flatnonzero(many.blend == k)
        part = DeblendResult.read(path, blend=k - len(many.blend_flux_cov) if k == 2 else k, model=toy_bundle)
        assert (part.n_scene, part.n_source) == (1, len(rows))
        assert part.source_start.tolist() == [0, len(rows)]
        assert not part.scene_index.any()
        assert not part.blend.any()
        assert_equal([covariance], part.blend_flux_cov)
        assert_equal(many.flux_covariance(rows), part.flux_covariance(range(len(rows))))
        assert_equal(rows, part.source_id)
        whole, alone = many.to_table()[rows], part.to_table()
        for name in set(whole.colnames) - {"scene", "blend"}:
            assert_equal(np.asarray(whole[name]), np.asarray(alone[name]), name)
        for i, row in enumerate(rows):
            assert_equal(many.stamps(row)[0], part.stamps(i)[0])
            assert many.stamps(row)[1] == part.stamps(i)[1]
        scene, i_scene = part.scenes[0], many.scene_index[rows[0]]
        assert_equal(many.scenes[i_scene].centers[rows - many.source_start[i_scene]], scene.centers)
        assert_equal(many.scenes[i_scene].psf, scene.psf)
        if images:
            assert_equal(many.scenes[i_scene].image, scene.image)
            alone_model = part.model(0)
            sky = many.sky[i_scene].astype(np.float32)[:, None, None]
            expected = np.where(scene.inverse_variance > 0, scene.image - sky - alone_model, np.float32(0))
            assert_equal(expected, part.residual(0))


def test_one_scene(many, toy_bundle, tmp_path):
    path = tmp_path / "out.fits"
    many.write(path, images=True)
    for k in range(many.n_scene):
        rows = np.arange(many.n_source)[many.sources(k)]
        part = DeblendResult.read(path, scene=k, model=toy_bundle)
        assert_equal(rows, part.source_id)
        assert_equal([many.scenes[k]], part.scenes)
        assert_equal(many.model(k), part.model(0))
        assert_equal(many.residual(k), part.residual(-1))
        assert_equal(many.flux_covariance(rows), part.flux_covariance(range(len(rows))))
        assert part.fitted.tolist() == many.fitted[rows].tolist()
        assert set(part.blend.tolist()) - {-1} == set(range(len(part.blend_flux_cov)))
        assert part.objective.tolist() == [many.objective[k]]
    assert DeblendResult.read(path, scene=-1, model=toy_bundle).n_source == 4


def test_a_part_keeps_its_rows_when_written_again(many, toy_bundle, tmp_path):
    many.write(tmp_path / "out.fits", images=True)
    part = DeblendResult.read(tmp_path / "out.fits", scene=3, model=toy_bundle)
    part.write(tmp_path / "part.fits", images=True)
    back = DeblendResult.read(tmp_path / "part.fits", model=toy_bundle)
    assert back.source_id.tolist() == list(range(14, 21))
    assert_equal(part.flux, back.flux)
    assert_equal(many.residual(3), back.residual(0))


def test_a_part_outlives_its_file(many, toy_bundle, tmp_path):
    path = tmp_path / "out.fits"
    many.write(path, images=True)
    part = DeblendResult.read(path, scene=3, model=toy_bundle)
    path.unlink()
    assert_equal(many.residual(3), part.residual(0))


def test_nothing(random_result, toy_bundle, tmp_path):
    for name, empty in {"scene.fits": random_result([(12, 12)], [0], [None]),
                        "batch.fits": random_result([], [], [])}.items():
        empty.write(tmp_path / name, images=True)
        assert_equal(empty, DeblendResult.read(tmp_path / name, model=toy_bundle))
        assert "flux_i" in DeblendResult.read_catalog(tmp_path / name).colnames
        with pytest.raises(IndexError, match="blend: expected an index below 0, got 0"):
            DeblendResult.read(tmp_path / name, blend=0, model=toy_bundle)


def test_deblended_scenes(toy_deblender, toy_model, tmp_path):
    """A result of the deblender; it has a source on a masked place where another source is."""
    first, centers, _ = make_scene(toy_deblender, toy_model, [[14, 16], [19, 18], [30, 25]])
    second, others, _ = make_scene(toy_deblender, toy_model, [[20, 20]], shape=(40, 44))
    psf = np.stack([gaussian_psf(fwhm, 19) for fwhm in (4.2, 4.0, 3.8)])
    nan = np.full((1, 2), np.nan)
    result = toy_deblender.deblend_batch(
        [first, second, second], [np.concatenate([centers, centers[:1] * 0 - 9, nan]), others, others],
        variance=VARIANCE, psf=[psf, psf, psf.copy()], n_iteration=3)
    result.write(tmp_path / "out.fits", images=True)
    assert_equal(result, DeblendResult.read(tmp_path / "out.fits", model=toy_deblender.bundle.path))
    again = DeblendResult.read(tmp_path / "out.fits", model=toy_deblender)
    assert_equal(result, again)
    assert again.folded[0] is toy_deblender.fold(psf / psf.sum(axis=(1, 2), keepdims=True))
    assert (result.flags[3:5] & NOT_FITTED).all()


def test_the_bundle_must_be_the_same(many, toy_bundle, toy_deblender, reseal, tmp_path):
    path = tmp_path / "out.fits"
    many.write(path)
    with pytest.raises(ValueError, match=r"model: .* was made with toy 1 .* give that bundle's folder"):
        DeblendResult.read(path)
    with pytest.raises(ValueError, match="no bundle"):
        DeblendResult.read(path, model=tmp_path / "nowhere")
    np.save(toy_bundle / "basis.npy", 2 * np.load(toy_bundle / "basis.npy"))
    reseal(toy_bundle)
    for model in (toy_bundle, toy_deblender):
        with pytest.raises(ValueError, match=r"model: .* expected that bundle, got toy"):
            DeblendResult.read(path, model=model)


def test_mistakes(many, toy_bundle, tmp_path):
    path = tmp_path / "out.fits"
    many.write(path)
    with pytest.raises(ValueError, match="blend, scene: expected one of them at most, got 1 and 0"):
        DeblendResult.read(path, blend=1, scene=0)
    with pytest.raises(IndexError, match="scene: expected an index below 5, got 5"):
        DeblendResult.read(path, scene=5, model=toy_bundle)
    with pytest.raises(ValueError, match="path: expected a name that ends in"):
        many.write(tmp_path / "out.csv")
    with pytest.raises(ValueError, match="a Parquet file holds the catalogue only"):
        DeblendResult.read(tmp_path / "out.parquet")
    fits.PrimaryHDU().writeto(tmp_path / "other.fits")
    with pytest.raises(ValueError, match="holds no result"):
        DeblendResult.read(tmp_path / "other.fits")
    fits.setval(path, "REVISION", value=result_file.REVISION + 1, extname="FIT")
    with pytest.raises(ValueError, match=r"has layout 5, this version reads 4"):
        DeblendResult.read(path, model=toy_bundle)


@pytest.mark.parametrize("name", ["out.fits", "out.fits.gz"])
def test_file(result, tmp_path, name):
    """Other programs read the tables of the file."""
    path = tmp_path / name
    result.write(path, images=True)
    with (gzip.open if name.endswith("gz") else open)(path, "rb") as file:
        assert len(file.read()) % 2880 == 0
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == [*TABLES, "IMAGE", "INVERSE_VARIANCE",
                                              *(f"{kind}_{k}" for k in range(3) for kind in ("MODEL", "RESIDUAL"))]
        for k in range(3):
            np.testing.assert_array_equal(hdus[f"MODEL_{k}"].data, result.model(k))
            np.testing.assert_array_equal(hdus[f"RESIDUAL_{k}"].data, result.residual(k))
            assert hdus[f"MODEL_{k}"].header["BUNIT"] == "nJy"
        np.testing.assert_array_equal(hdus["SCENES"].data["objective"], result.objective)
        legend = {row["name"]: row["bit"] for row in hdus["FLAGS"].data}
        assert legend == {flag.name: flag.bit_length() - 1 for flag in Flag}
        for table in ("CATALOG", "FIT", "SCENES", "BLENDS"):
            header = hdus[table].header
            assert all(header[f"TCOMM{i + 1}"] for i in range(header["TFIELDS"])), table
    assert sorted(os.listdir(tmp_path)) == [name, "toy"]  # and the bundle


def test_images_of_one_size_are_a_cube(random_result, tmp_path):
    result = random_result([(12, 14)] * 2, [6, 1], [None, None])
    result.write(tmp_path / "out.fits", images=True)
    cube = fits.getdata(tmp_path / "out.fits", "IMAGE")
    np.testing.assert_array_equal(cube, np.stack([scene.image for scene in result.scenes]))


def test_catalog(result, tmp_path):
    result.write(tmp_path / "out.fits")
    table, back = result.to_table(), DeblendResult.read_catalog(tmp_path / "out.fits")
    assert back.colnames == [*table.colnames, "latent", "flux_cov"]
    for column in table.itercols():
        np.testing.assert_array_equal(back[column.name], column)
        assert (back[column.name].unit, back[column.name].description) == (column.unit, column.description)
    np.testing.assert_array_equal(back["latent"], result.latent)
    np.testing.assert_array_equal(back["flux_cov"], result.flux_cov)
    assert back.meta["MODELVER"] == "1"
    assert not any(key.startswith("TCOMM") for key in back.meta)


def test_a_catalog_with_more_columns(many, toy_bundle, tmp_path):
    catalog = many.to_table()
    catalog.add_column(np.arange(many.n_source) + 100, name="catalog_id", index=1)
    result_file.tables(many, catalog).writeto(tmp_path / "out.fits")
    back = Table.read(tmp_path / "out.fits", hdu="CATALOG")
    assert back["catalog_id"][0] == 100
    read = DeblendResult.read_catalog(tmp_path / "out.fits")
    assert [read[name].description for name in many.to_table().colnames] == [
        column.description for column in many.to_table().itercols()]
    assert_equal(many.flux, DeblendResult.read(tmp_path / "out.fits", model=toy_bundle).flux)
    assert "latent" not in catalog.colnames


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

    monkeypatch.setattr(result_file, "append_image", fail)
    with pytest.raises(OSError, match="disk full"):
        result.write(path, images=True, overwrite=True)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["out.fits", "toy"]
