"""The deblender for BTK, with stand-ins of BTK's classes, and with BTK itself where it is installed (NumPy below 2.4).

The stand-ins follow btk/deblend.py, btk/blend_batch.py and surveycodex/utilities.py in names and meanings; GalSim is
real.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.table import Table
from astropy.wcs import WCS

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.flags import Flag

SIZE = 60
ZERO_POINT = {"g": 28.29, "r": 28.13}  # magnitude of one electron per second
SECONDS = {"g": 2400.0, "r": 5520.0}
SKY = {"g": 2000.0, "r": 9000.0}  # electrons


@dataclasses.dataclass
class DeblendExample:
    """btk.blend_batch.DeblendExample."""

    max_n_sources: int
    catalog: Any
    n_bands: Any = None
    image_size: Any = None
    segmentation: Any = None
    deblended_images: Any = None
    extra_data: Any = None


@dataclasses.dataclass
class DeblendBatch:
    """btk.blend_batch.DeblendBatch."""

    batch_size: int
    max_n_sources: int
    catalog_list: Any
    n_bands: Any = None
    image_size: Any = None
    segmentation: Any = None
    deblended_images: Any = None
    extra_data: Any = None


class BtkDeblender:
    """btk.deblend.Deblender."""

    def __init__(self, max_n_sources: int) -> None:
        self.max_n_sources = max_n_sources

    def __call__(self, blend_batch: Any, njobs: int = 1, **kwargs: Any) -> Any:
        return self.batch_call(blend_batch, njobs, **kwargs)  # type: ignore[attr-defined]


@pytest.fixture
def adapter() -> Any:
    """Return the adapter's module, with the stand-ins as BTK."""
    fakes = {"btk": {}, "btk.deblend": {"Deblender": BtkDeblender},
             "btk.blend_batch": {"DeblendBatch": DeblendBatch, "DeblendExample": DeblendExample}, "surveycodex": {},
             "surveycodex.utilities": {"mean_sky_level": lambda survey, filt: SKY[filt.name] * units.electron}}
    patch = pytest.MonkeyPatch()
    for name, content in fakes.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        patch.setitem(sys.modules, name, module)
    patch.delitem(sys.modules, "deblendrt.engine.adapters.btk", raising=False)
    yield importlib.import_module("deblendrt.engine.adapters.btk")
    patch.undo()
    sys.modules.pop("deblendrt.engine.adapters.btk", None)


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender.load("lsst")


@pytest.fixture(scope="module")
def batch() -> Any:
    """Return two blends of Gaussian galaxies under a Kolmogorov PSF, in electrons."""
    galsim = pytest.importorskip("galsim", reason="GalSim draws BTK's PSFs")
    rng = np.random.default_rng(5)
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.cdelt, wcs.wcs.ctype = [SIZE / 2 + 0.5] * 2, [0.2 / 3600] * 2, ["RA---TAN", "DEC--TAN"]
    psfs = [galsim.Kolmogorov(fwhm=fwhm) for fwhm in (0.86, 0.81)]
    images, tables, truth = [], [], []
    for positions in ([(-12.2, 5.1), (3.4, -2.0), (9.0, 1.0)], [(0.3, 0.4)]):
        flux = {band: rng.uniform(3e5, 1e6, len(positions)) for band in ZERO_POINT}
        planes = []
        for psf, band in zip(psfs, ZERO_POINT, strict=True):
            image = galsim.Image(SIZE, SIZE, scale=0.2)
            for (x, y), f in zip(positions, flux[band], strict=True):
                galaxy = galsim.Convolve(galsim.Exponential(half_light_radius=0.4, flux=f), psf)
                image += galaxy.shift(0.2 * x, 0.2 * y).drawImage(image.copy())
            planes.append(image.array + rng.normal(size=(SIZE, SIZE)) * np.sqrt(SKY[band] + image.array.clip(0)))
        x, y = np.array(positions).T + (SIZE - 1) / 2
        ra, dec = wcs.pixel_to_world_values(x, y)
        tables.append(Table({"ra": ((ra + 180) % 360 - 180) * 3600, "dec": dec * 3600, "x_peak": x, "y_peak": y}))
        images.append(planes)
        truth.append(np.stack([flux[band] for band in ZERO_POINT], 1))
    survey = SimpleNamespace(
        available_filters=list(ZERO_POINT), pixel_scale=0.2 * units.arcsec,
        get_filter=lambda band: SimpleNamespace(name=band, zeropoint=ZERO_POINT[band] * units.mag,
                                                full_exposure_time=SECONDS[band] * units.s))
    return SimpleNamespace(batch_size=2, image_size=SIZE, blend_images=np.array(images), catalog_list=tables, psf=psfs,
                           survey=survey, wcs=wcs, truth=truth)


def test_the_module_says_what_is_missing() -> None:
    if importlib.util.find_spec("btk") is not None:
        pytest.skip("BTK is there")
    from deblendrt.engine.adapters import btk

    with pytest.raises(ImportError, match="pip install blending_toolkit"):
        _ = btk.DeblendRt
    with pytest.raises(AttributeError, match="Other"):
        _ = btk.Other


def test_zero_points(adapter: Any, batch: Any) -> None:
    """24 mag in r are 247,707 electrons of a full exposure in surveycodex, which rounds down."""
    points = adapter.zero_points(batch.survey, ["r"])
    assert 10 ** (0.4 * (points[0] - 24)) == pytest.approx(247_707.5, abs=0.6)


def test_fluxes_positions_and_images_in_electrons(adapter: Any, deblender: Deblender, batch: Any) -> None:
    result = adapter.DeblendRt(4, deblender)(batch)
    assert result.deblended_images.shape == (2, 4, 2, SIZE, SIZE)
    assert (result.deblended_images >= 0).all()
    for k, (catalog, flux) in enumerate(zip(result.catalog_list, batch.truth, strict=True)):
        found = np.stack([catalog["flux_g"], catalog["flux_r"]], 1)
        np.testing.assert_allclose(found, flux, rtol=0.05)
        np.testing.assert_allclose(catalog["x_peak"], batch.catalog_list[k]["x_peak"], atol=0.1)
        np.testing.assert_allclose(catalog["ra"], batch.catalog_list[k]["ra"], atol=0.02)
        shown = result.deblended_images[k, : len(catalog)].sum((2, 3))
        np.testing.assert_allclose(shown, found, rtol=0.06)
        assert (result.deblended_images[k, len(catalog):] == 0).all()


def test_one_by_one_is_the_same(adapter: Any, deblender: Deblender, batch: Any) -> None:
    plugin = adapter.DeblendRt(4, deblender, n_iteration=3)
    together = plugin(batch)
    for k in range(2):
        np.testing.assert_array_equal(plugin.deblend(k, batch).deblended_images, together.deblended_images[k])


def test_lists_of_sources(adapter: Any, deblender: Deblender, batch: Any) -> None:
    """No source, a source off the stamp, a source without a position, only the columns ra and dec, too many sources."""
    plugin = adapter.DeblendRt(3, deblender, photon_noise=False, n_iteration=3)
    odd = Table({"x_peak": [-50.0, np.nan, 30.0], "y_peak": [3.0, 3.0, 30.0]})
    result = plugin(batch, reference_catalogs=[Table({"ra": [], "dec": []}), odd])
    assert [len(catalog) for catalog in result.catalog_list] == [0, 3]
    assert (result.deblended_images[0] == 0).all()
    assert result.catalog_list[1]["flags"][0] == Flag.OFF_IMAGE
    assert np.isnan(result.catalog_list[1]["flux_r"][1])
    assert result.deblended_images[1, 2].sum() > 0
    sky = plugin(batch, reference_catalogs=[table["ra", "dec"] for table in batch.catalog_list])
    np.testing.assert_allclose(sky.catalog_list[0]["x_peak"], batch.catalog_list[0]["x_peak"], atol=0.2)
    with pytest.raises(ValueError, match="max_n_sources: expected at least 3"):
        adapter.DeblendRt(2, deblender)(batch)
    with pytest.raises(ValueError, match="columns x_peak"):
        plugin(batch, reference_catalogs=[Table({"a": [1]})] * 2)
    with pytest.raises(TypeError, match="unexpected"):
        plugin(batch, threshold=3)


def test_detection(adapter: Any, deblender: Deblender, batch: Any) -> None:
    pytest.importorskip("sep", reason="extra detect")
    result = adapter.DeblendRt(5, deblender, detect=True, photon_noise=False, n_iteration=3)(batch)
    assert [len(catalog) for catalog in result.catalog_list] == [3, 1]


def test_psfs_that_are_images_are_refused(adapter: Any) -> None:
    with pytest.raises(ValueError, match="pixel scale"):
        adapter.draw_psfs([SimpleNamespace(array=np.ones((3, 3)))], 0.2)


def test_btk_itself(deblender: Deblender) -> None:
    """BTK makes a batch of a known galaxy and checks the deblender's output."""
    try:
        import btk
    except (ImportError, AttributeError) as error:
        pytest.skip(f"BTK is not installed, or not with this NumPy: perf.embedding.btk has it ({error})")
    from deblendrt.engine.adapters.btk import DeblendRt

    survey = btk.survey.get_surveys("LSST")
    psfs = [survey.get_filter(band).psf for band in survey.available_filters]
    batch = btk.blend_batch.BlendBatch(
        1, 2, SIZE * 0.2 + 1e-6, survey, np.random.default_rng(0).normal(0, 500, (1, 6, SIZE, SIZE)),
        np.zeros((1, 2, 6, SIZE, SIZE)), [Table({"ra": [0.0], "dec": [0.0], "x_peak": [30.0], "y_peak": [30.0]})], psfs)
    result = DeblendRt(2, deblender)(batch)
    assert result.deblended_images.shape == (1, 2, 6, SIZE, SIZE)
