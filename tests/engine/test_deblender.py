"""Whole deblendings: what they find, what bad input does, which forms of input are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy import units as u
from tolerances import SAMPLE_SIGMA
from toy_model import BANDS, N_BAND, SKY_SIGMA, gaussian_psf
from toy_scenes import CONVERGED, FIELDS, VARIANCE, assert_close, digest

from deblendrt import engine
from deblendrt.cuda.driver.device import DeviceError
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.measure import uncertainty
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.solve import descent, joint_fluxes
from deblendrt.engine.solve.start import filled_cutout

# --- what it finds


def test_fluxes_are_found(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, truth = scene
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    assert not (result.flags & NOT_FITTED).any()
    # shapes were fitted too, which the errors leave out: twice their size
    assert (np.abs(result.flux - truth) < 2 * SAMPLE_SIGMA * result.flux_err).all()
    assert (np.abs(result.map_flux - truth) < 0.2 * truth).all()
    np.testing.assert_allclose(result.position, centers, atol=0.2)
    assert (result.reduced_chi2 < 1.5).all()
    np.testing.assert_allclose(result.enclosed, 1, atol=0.01)
    residual = result.residual(0) / np.array(SKY_SIGMA)[:, None, None]
    assert abs(residual.std() - 1) < 0.05
    assert result.bands == BANDS


@pytest.mark.parametrize("options", [{"solver": "adam"}, {"start": "encoder"}, {"robust": False},
                                     {"center_sigma": 0.05}, {"n_iteration": 40}])
def test_options_lead_to_the_same_galaxies(toy_deblender: Deblender, scene: Any, options: dict[str, Any]) -> None:
    image, centers, truth = scene
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal", **options)
    assert (np.abs(result.flux - truth) < 2 * SAMPLE_SIGMA * result.flux_err).all()


def test_no_iteration_is_the_start(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=0, start="linear",
                                         psf="nominal")
    np.testing.assert_array_equal(result.latent[:, N_BAND + 2 :], np.zeros((4, 3), np.float32))
    np.testing.assert_allclose(result.position, centers)
    assert np.isfinite(result.flux).all()
    assert (result.flags & Flag.NOT_CONVERGED).any()


# --- data problems set flags


def test_bad_pixels(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, truth = scene
    damaged = image.copy()
    damaged[:, 16, 14] = np.nan
    damaged[1, 30, 45] = np.inf
    damaged[2, 5, 5] = -np.inf
    result = toy_deblender.deblend_batch(damaged, centers, variance=VARIANCE, psf="nominal")
    near = (result.flags & Flag.NON_FINITE) != 0
    assert near.all()
    assert (result.flags[0] & Flag.MASKED_CENTER) or not np.array_equal(np.rint(centers[0]), [14, 16])
    assert np.isfinite(result.flux).all()
    assert (np.abs(result.flux - truth) < 2 * SAMPLE_SIGMA * result.flux_err).all()


def test_a_scene_without_any_pixel(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    for options in ({"mask": np.ones(image.shape[1:], bool)}, {"variance": np.inf}, {"variance": 0.0},
                    {"variance": -1.0}, {"variance": np.nan}):
        options = {"variance": VARIANCE, "psf": "nominal"} | options
        result = toy_deblender.deblend_batch(image, centers, **options)
        assert (result.flags & Flag.NO_DATA).all()
        assert np.isnan(result.flux).all()
        assert np.isnan(result.position).all()
        assert not result.model(0).any()
        assert result.scene_n_pixel[0] == 0
        assert bool((result.flags & Flag.BAD_VARIANCE).all()) == (not np.all(np.asarray(options["variance"]) > 0))
    nothing = toy_deblender.deblend_batch(np.full_like(image, np.nan), centers, psf="nominal")
    assert (nothing.flags & Flag.NO_DATA).all()


def test_bad_variance_pixels_are_dropped(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    variance = np.broadcast_to(VARIANCE[:, None, None], image.shape).copy()
    mask = np.zeros(image.shape, bool)
    for value, (x, y) in {0.0: (15, 17), -2.0: (22, 20), np.nan: (40, 33)}.items():
        variance[:, y, x] = value
        mask[:, y, x] = True
    result = toy_deblender.deblend_batch(image, centers, variance=variance, psf="nominal")
    assert (result.flags & Flag.BAD_VARIANCE).all()
    masked = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, mask=mask, psf="nominal")
    assert not (masked.flags & Flag.BAD_VARIANCE).any()
    np.testing.assert_array_equal(result.flux, masked.flux)


def test_centres_that_cannot_be_fitted_keep_their_rows(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    bad = np.array([[-30.0, 5.0], [np.nan, 4.0], [10.0, np.inf], [1e9, 1e9]])
    mixed = np.concatenate([bad[:1], centers[:2], bad[1:3], centers[2:], bad[3:]])
    good = np.array([1, 2, 5, 6])
    result = toy_deblender.deblend_batch(image, mixed, variance=VARIANCE, psf="nominal")
    assert result.n_source == 8
    np.testing.assert_array_equal(result.center, mixed)
    assert result.flags[0] & Flag.OFF_IMAGE
    assert result.flags[7] & Flag.OFF_IMAGE
    assert result.flags[3] & Flag.CENTER_NOT_FINITE
    assert result.flags[4] & Flag.CENTER_NOT_FINITE
    np.testing.assert_array_equal(np.flatnonzero(result.fitted), good)
    assert np.isnan(result.flux[[0, 3, 4, 7]]).all()
    alone = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    for name in FIELDS:  # and they are not felt
        np.testing.assert_array_equal(getattr(result, name)[good], getattr(alone, name))


def test_duplicate_centres(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, truth = scene
    doubled = np.concatenate([centers, centers[3:], centers[3:]])
    result = toy_deblender.deblend_batch(image, doubled, variance=VARIANCE, psf="nominal")
    same = [3, 4, 5]
    assert (result.flags[same] & Flag.TOO_CLOSE).all()
    assert not (result.flags[:3] & Flag.TOO_CLOSE).any()
    assert np.isfinite(result.flux).all()
    assert (np.abs(result.flux[same]) < 2 * truth[3]).all()
    np.testing.assert_allclose(result.flux[same].sum(0), truth[3], rtol=0.2)
    assert (np.abs(result.flux[:3] - truth[:3]) < 2 * SAMPLE_SIGMA * result.flux_err[:3]).all()


def test_nothing_to_do(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    empty = toy_deblender.deblend_batch(image, [], variance=VARIANCE, psf="nominal")
    assert (empty.n_scene, empty.n_source) == (1, 0)
    assert not empty.model(0).any()
    assert empty.scene_chi2[0] > 0
    none = toy_deblender.deblend_batch([], [])
    assert (none.n_scene, none.n_source) == (0, 0)
    assert len(none.to_table()) == 0
    some = toy_deblender.deblend_batch([image, image], [centers[:0], centers], variance=VARIANCE, psf="nominal")
    np.testing.assert_array_equal(some.source_start, [0, 0, 4])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2)])
def test_tiny_scenes(toy_deblender: Deblender, shape: tuple[int, int]) -> None:
    image = np.full((N_BAND, *shape), 50.0)
    result = toy_deblender.deblend_batch(image, [(0, 0)], variance=VARIANCE, psf="nominal")
    assert result.fitted.all()
    assert np.isfinite(result.flux).all()
    assert result.flags[0] & Flag.EDGE
    assert result.model(0).shape == image.shape
    assert (result.enclosed < 0.9).all()
    no_pixels = toy_deblender.deblend_batch(np.zeros((N_BAND, 0, 5)), [(0, 0)], variance=VARIANCE, psf="nominal")
    assert no_pixels.flags[0] & NOT_FITTED


def test_extreme_values_stay_finite(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    for factor in (0.0, -1.0, 1e-6, 1e6):
        result = toy_deblender.deblend_batch(factor * image, centers, variance=VARIANCE, psf="nominal")
        for name in ("flux", "flux_err", "map_flux", "position", "chi2", "latent"):
            assert np.isfinite(getattr(result, name)).all(), (factor, name)
    with np.errstate(over="ignore"):
        huge = toy_deblender.deblend_batch(image.astype(np.float64) * 1e200, centers, variance=VARIANCE, psf="nominal")
    assert huge.n_source == 4


# --- mistakes of the caller raise


@pytest.mark.parametrize(("change", "named"), [
    ({"cutouts": np.zeros(5)}, "cutouts"),
    ({"cutouts": np.zeros((2, 2, 3, 9, 9))}, "cutouts"),
    ({"cutouts": np.zeros((4, 20, 20))}, "cutouts"),
    ({"cutouts": np.zeros((3, 20, 20), complex)}, "cutouts"),
    ({"cutouts": "image"}, "cutouts"),
    ({"centers": np.zeros((2, 3))}, "centers"),
    ({"centers": np.zeros(2)}, "centers"),
    ({"centers": None}, "centers"),
    ({"bands": "gru"}, "bands"),
    ({"bands": "ggr"}, "bands"),
    ({"variance": np.ones((3, 9, 9))}, "variance"),
    ({"mask": np.zeros((7, 7), bool)}, "mask"),
    ({"mask": np.full((48, 52), 0.5)}, "mask"),
    ({"psf": np.ones((2, 8, 8))}, "psf"),
    ({"psf": np.zeros((3, 9, 9))}, "psf"),
    ({"psf": np.full((3, 9, 9), np.nan)}, "psf"),
    ({"pixel_scale": 0.4}, "pixel_scale"),
    ({"zero_point": "AB"}, "zero_point"),
    ({"background": np.zeros((5, 5))}, "background"),
    ({"solver": "newton"}, "solver"),
    ({"solver": None}, "solver"),
    ({"start": "random"}, "start"),
    ({"n_iteration": -1}, "n_iteration"),
    ({"n_iteration": 2.5}, "n_iteration"),
    ({"n_iteration": "many"}, "n_iteration"),
    ({"n_iteration": float("nan")}, "n_iteration"),
    ({"n_threads": 0}, "n_threads"),
    ({"n_threads": None}, "n_threads"),
    ({"center_sigma": 0.0}, "center_sigma"),
    ({"center_sigma": float("nan")}, "center_sigma"),
    ({"center_sigma": "wide"}, "center_sigma"),
])
def test_mistakes(toy_deblender: Deblender, scene: Any, change: dict[str, Any], named: str) -> None:
    arguments = {"cutouts": scene[0], "centers": scene[1], "variance": VARIANCE, "psf": "nominal"} | change
    with pytest.raises(ValueError, match=named) as caught:
        toy_deblender.deblend_batch(arguments.pop("cutouts"), arguments.pop("centers"), **arguments)
    assert "expected" in str(caught.value)


def test_unknown_arguments_and_devices(toy_deblender: Deblender, scene: Any) -> None:
    with pytest.raises(TypeError, match="masks"):
        toy_deblender.deblend_batch(*scene[:2], masks=None)
    with pytest.raises(ValueError, match="device: expected"):
        Deblender.load(toy_deblender.bundle.path, device="tpu")
    with pytest.raises(ValueError, match="stream: expected None"):
        Deblender.load(toy_deblender.bundle.path, stream=1)
    with pytest.raises(DeviceError, match=r"driver|GPU|not installed"):  # no machine has so many
        Deblender.load(toy_deblender.bundle.path, device="cuda:99")
    with pytest.raises(ValueError, match="no bundle"):
        Deblender.load("euclid")
    with pytest.raises(ValueError, match="n_sources"):
        toy_deblender.warmup(0)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = engine.deblend  # type: ignore[attr-defined]


def test_warmup(toy_deblender: Deblender) -> None:
    toy_deblender.warmup(n_sources=100)
    assert engine.Deblender is Deblender


# --- forms of the same input


def test_forms_of_the_same_image(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    plain = digest(toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal"))
    padded = np.zeros((N_BAND, 48, 52, 2), np.float32)
    padded[..., 0] = image
    readonly = image.copy()
    readonly.flags.writeable = False
    forms = {"float64": image.astype(np.float64), "big-endian": image.astype(">f4"), "strided": padded[..., 0],
             "fortran": np.asfortranarray(image), "read-only": readonly, "reversed": image[:, ::-1].copy()[:, ::-1],
             "list of bands": np.array(list(image)), "quantity": image * u.nJy, "masked": np.ma.masked_array(image)}
    for name, form in forms.items():
        variance = VARIANCE * u.nJy**2 if name == "quantity" else VARIANCE
        assert digest(toy_deblender.deblend_batch(form, centers, variance=variance, psf="nominal")) == plain, name
    lists = toy_deblender.deblend_batch(image, centers.tolist(), variance=VARIANCE.tolist(), bands=list(BANDS),
                                        psf="nominal")
    assert digest(lists) == plain
    nested = toy_deblender.deblend_batch([image], [centers], variance=VARIANCE, psf="nominal")
    assert digest(nested) == plain
    assert digest(toy_deblender.deblend_batch(image[None], centers[None], variance=VARIANCE, psf="nominal")) == plain


def test_integers_and_units(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    whole = np.rint(image)
    reference = toy_deblender.deblend_batch(whole, centers, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    for dtype in (np.int32, ">i2", np.int64):
        result = toy_deblender.deblend_batch(whole.astype(dtype), centers, variance=VARIANCE, n_iteration=CONVERGED,
                                             psf="nominal")
        assert digest(result) == digest(reference), dtype
    in_units = toy_deblender.deblend_batch(whole * 1e-3 * u.uJy, centers, variance=VARIANCE * 1e-6 * u.uJy**2,
                                           n_iteration=CONVERGED, psf="nominal")
    assert_close(in_units, reference)
    counts = toy_deblender.deblend_batch(whole * 10, centers, variance=VARIANCE * 100, zero_point=33.9,
                                         n_iteration=CONVERGED, psf="nominal")
    assert_close(counts, reference)
    offset = toy_deblender.deblend_batch(whole + 8, centers, variance=VARIANCE, background=8.0,
                                         n_iteration=CONVERGED, psf="nominal")
    assert digest(offset) == digest(reference)


def test_arguments_are_not_modified(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    arguments = {"cutouts": image.copy(), "centers": centers.copy(), "mask": np.zeros(image.shape, bool),
                 "variance": np.broadcast_to(VARIANCE[:, None, None], image.shape).copy(),
                 "psf": 3 * np.array([gaussian_psf(f) for f in (4.0, 3.6, 3.4)]), "background": np.ones(3)}
    arguments["cutouts"][0, 3, 3] = np.nan
    before = {name: value.copy() for name, value in arguments.items()}
    result = toy_deblender.deblend_batch(**arguments)
    for name, value in arguments.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
        for mine in (result.scenes[0].image, result.center, result.position):
            assert not np.shares_memory(mine, value)


def test_bands_go_by_name(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    psf = np.array([gaussian_psf(f) for f in (4.0, 3.6, 3.4)])
    ordered = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf=psf)
    turned = [2, 0, 1]
    other = toy_deblender.deblend_batch(image[turned], centers, variance=VARIANCE[turned], psf=psf[turned], bands="igr")
    assert digest(other) == digest(ordered)


@pytest.mark.parametrize("band", [0, 2])
def test_a_single_band(toy_deblender: Deblender, scene: Any, band: int) -> None:
    image, centers, truth = scene
    results = [toy_deblender.deblend_batch(form, centers, variance=VARIANCE[band], bands=BANDS[band], psf="nominal")
               for form in (image[band], image[band : band + 1])]
    assert digest(results[0]) == digest(results[1])
    result = results[0]
    others = [b for b in range(N_BAND) if b != band]
    assert (result.flags & Flag.BAND_MISSING).all()
    assert np.isnan(result.flux[:, others]).all()
    assert np.isnan(result.flux_err[:, others]).all()
    assert np.isfinite(result.map_flux).all()  # the prior fills in
    error = np.abs(result.flux[:, band] - truth[:, band]) / result.flux_err[:, band]
    assert (error < 2 * SAMPLE_SIGMA).all()
    color = np.log(result.map_flux / result.map_flux[:, [2]])
    assert np.abs(color - toy_deblender.bundle.mean_color).max() < 1.5


@pytest.mark.parametrize("options", [{"psf": "nominal"}, {"psf": "nominal", "solver": "adam", "n_iteration": 30},
                                     {"psf": "nominal", "robust": False},
                                     {"psf": lambda x, y: np.array([gaussian_psf(3.0 + 0.01 * x)] * N_BAND)}])
def test_leaving_out_bands_without_data_changes_no_bit(toy_deblender: Deblender, scene: Any, options: dict[str, Any],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    image, centers, _ = scene
    masked = np.where(np.arange(N_BAND)[:, None, None] == 1, image, np.nan)
    result = toy_deblender.deblend_batch(masked, centers, variance=VARIANCE, **options)
    assert np.isfinite(result.flux[:, 1]).all()
    for module in (joint_fluxes, descent, uncertainty):
        monkeypatch.setattr(module, "where_measured", lambda problem: problem)
    whole = toy_deblender.deblend_batch(masked, centers, variance=VARIANCE, **options)
    assert digest(result) == digest(whole)


def test_the_encoder_is_asked_where_its_cutout_can_be_filled(toy_deblender: Deblender, scene: Any) -> None:
    """Another band or the opposite side fills it; where most is masked, shapes start at the prior's mean."""
    image, centers, _ = scene
    y = round(centers[0][1])
    mask = np.ones(image.shape[1:], bool)
    mask[y - 1 : y + 2] = False
    shape = slice(N_BAND + 2, None)
    masked = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, mask=mask, n_iteration=0, psf="nominal")
    short = toy_deblender.deblend_batch(image[1:], centers, variance=VARIANCE[1:], bands=BANDS[1:], n_iteration=0,
                                        psf="nominal")
    half = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, mask=np.indices(mask.shape)[0] < y - 2,
                                       n_iteration=0, psf="nominal")
    assert (masked.latent[0, shape] == 0).all()
    assert (short.latent[:, shape] != 0).any(1).all()
    assert (half.latent[0, shape] != 0).any()


def test_filled_cutouts(toy_deblender: Deblender) -> None:
    """Galaxies of mean colours that look the same from both sides come back whole, in units of their noise."""
    bundle = toy_deblender.bundle
    y, x = np.mgrid[-7:8, -7:8]
    color = np.exp(np.asarray(bundle.mean_color))[:, None, None]
    light = (color * 100 * np.exp(-np.hypot(x, y) / 3)).astype(np.float32)
    weight = np.broadcast_to(np.asarray(bundle.sky_sigma)[:, None, None] ** -2.0, light.shape).astype(np.float32)
    whole, noise, coverage = filled_cutout(light, weight, bundle)
    assert coverage == 1
    np.testing.assert_allclose(whole, light * np.sqrt(weight), rtol=1e-6)
    short = weight.copy()
    short[0] = 0
    short[:, x < 0] = 0
    filled, log_noise, coverage = filled_cutout(np.where(short > 0, light, 0), short, bundle)
    assert coverage == 1
    np.testing.assert_allclose(filled[1:], whole[1:], rtol=1e-5)
    np.testing.assert_allclose(filled[0] * np.exp(log_noise[0]), light[0], rtol=1e-5)
    assert (log_noise >= noise - 1e-6).all()
