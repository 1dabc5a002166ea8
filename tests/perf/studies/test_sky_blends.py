"""Hidden pixels and injected galaxies on made-up blends, and the files of solutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("galsim")

from astropy.io import fits

from perf.studies.sky import blends, hidden, injection, solutions
from perf.studies.sky.blends import BANDS, NJY, Blend

SHAPE = (len(BANDS), 60, 50)


def gaussian(shape: tuple[int, int], x: float, y: float, sigma: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)
    return image / image.sum()


@pytest.fixture
def light() -> np.ndarray:
    """The noiseless image: two sources of a Gaussian profile."""
    return 1e4 * np.stack([gaussian(SHAPE[1:], 18, 30, 2) + gaussian(SHAPE[1:], 30, 28, 2)] * len(BANDS))


@pytest.fixture
def blend(light: np.ndarray) -> Blend:
    weight = np.full(SHAPE, 0.01)
    weight[:, :8] = 0
    weight[2, :, :5] = 0
    image = light + 10 * np.random.default_rng(0).standard_normal(SHAPE)
    psf = np.stack([gaussian((41, 41), 20, 20, 1.7)] * len(BANDS))
    return Blend(4, image, weight, np.array([[18.0, 30.0], [30.0, 28.0]]), psf)


@pytest.fixture
def hst(tmp_path: Path) -> Path:
    """Four bright HST galaxies of Gaussian profile, of which those of odd index are injected."""
    rng = np.random.default_rng(1)
    header = fits.Header({"PIXSCALE": 0.03})
    stamps = [fits.ImageHDU(flux * gaussian((60, 60), 31.5, 26.5, 4) + rng.standard_normal((60, 60)), header)
              for flux in (1e5, 2e5, 3e5, 4e5)]
    fits.HDUList([fits.PrimaryHDU(), *stamps]).writeto(tmp_path / "hst.fits")
    return tmp_path / "hst.fits"


def write(folder: Path, n_peak: int) -> None:
    np.savez(folder, images=np.ones((5, 9, 8), np.float32), weights=np.ones((5, 9, 8), np.float32),
             peaks=np.zeros((n_peak, 2)), psfs=np.ones((5, 3, 3)))


def test_blends_are_read_by_part(tmp_path: Path) -> None:
    for k, n_peak in enumerate((2, 3, 40, 4)):
        write(tmp_path / f"{k}.npz", n_peak)
    read = {part: [b.number for b in blends.read_blends(tmp_path, part)] for part in blends.PARTS}
    assert read == {"all": [0, 1, 3], "tuning": [0], "test": [1, 3]}
    first = blends.read_blends(tmp_path)[0]
    np.testing.assert_allclose(first.image, NJY)
    np.testing.assert_allclose(first.image**2 * first.weight, 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"part: expected one of .* got 'odd'"):
        blends.read_blends(tmp_path, "odd")
    with pytest.raises(ValueError, match="folder: expected blends"):
        blends.read_blends(tmp_path / "none")


def test_significance_of_noise_is_that_of_its_bands(light: np.ndarray) -> None:
    shape = (5, 200, 200)
    noise = Blend(0, 10 * np.random.default_rng(2).standard_normal(shape), np.full(shape, 0.01), np.zeros((1, 2)),
                  np.ones((5, 3, 3)))
    inner = blends.significance(noise)[10:-10, 10:-10]
    # a band's signal is a standard normal, of which half the square is counted
    assert np.mean(inner**2) == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize("size", hidden.SIZES)
def test_hidden_blocks(blend: Blend, size: int) -> None:
    chosen = hidden.hide(blend, size)
    footprint = (blend.weight > 0).any(0)
    assert not chosen[~footprint].any()
    assert chosen.sum() == pytest.approx(hidden.FRACTION * footprint.sum(), abs=size**2)
    np.testing.assert_array_equal(chosen, hidden.hide(blend, size))
    given = hidden.given_weights(blend, size)
    assert not given[:, chosen].any()
    np.testing.assert_array_equal(given[:, ~chosen], blend.weight[:, ~chosen])


def test_the_truth_scores_one_and_less_light_scores_more(blend: Blend, light: np.ndarray) -> None:
    same = [Blend(k, light + 10 * np.random.default_rng(k).standard_normal(SHAPE), blend.weight, blend.peaks, blend.psf)
            for k in range(8)]
    right = hidden.score(same, 4, [light] * 8)
    assert right["pooled_5"] == pytest.approx(1, abs=0.15)
    assert right["median_5"] == pytest.approx(1, abs=0.25)
    assert right["n_5"] == sum(np.isfinite(row[1]) for row in right["blends"])
    wrong = hidden.score(same, 4, [0.8 * light] * 8)
    assert wrong["pooled_5"] > 2 * right["pooled_5"]


def test_injected_light_is_the_stated_flux(blend: Blend, hst: Path) -> None:
    assert len(injection.galaxies(hst)) == 2
    scene = injection.inject(blend, hst)
    assert scene is not None
    added = scene.image - blend.image
    np.testing.assert_allclose(added.sum((1, 2)), scene.flux, rtol=0.02)
    assert np.sqrt((blend.weight * added**2).sum()) == pytest.approx(scene.snr)
    assert injection.SNR[0] <= scene.snr <= injection.SNR[1]
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    centroid = [(added[0] * axis).sum() / added[0].sum() for axis in (x, y)]
    np.testing.assert_allclose(centroid, scene.position, atol=0.1)
    assert np.hypot(*(blend.peaks - scene.position).T).min() >= injection.DISTANCE[0]
    assert len(scene.centers) == 3
    assert 0 < np.hypot(*(scene.centers[-1] - scene.position)) < 5 * injection.CENTER_ERROR
    other = injection.inject(blend, hst, 1)
    assert other is not None
    assert other.snr != scene.snr


def test_no_place_for_a_galaxy(blend: Blend, hst: Path) -> None:
    nothing = Blend(4, blend.image, np.zeros(SHAPE), blend.peaks, blend.psf)
    assert injection.inject(nothing, hst) is None
    assert injection.inject_all([nothing], hst) == []


def test_scores_of_fluxes_and_errors(blend: Blend) -> None:
    rng, n = np.random.default_rng(3), 4000
    true = np.full(5, 100.0)
    scenes = [injection.Injected(blend, blend.image, blend.peaks, true, snr, np.zeros(2))
              for snr in np.where(np.arange(n) % 2, 30.0, 100.0)]
    flux = true + np.where(np.arange(n) % 2, 4.0, 1.0)[:, None] * rng.standard_normal((n, 5))
    flux[0] = np.nan
    found = injection.flux_score(scenes, flux)
    assert found["error_faint"] == pytest.approx(0.04 * 0.6745, rel=0.1)
    assert found["error_bright"] == pytest.approx(0.01 * 0.6745, rel=0.1)
    assert found["n_failed"] == 1
    flux[0] = 100.0
    columns = {"flux": flux, "flux_err": np.where(np.arange(n) % 2, 2.0, 0.5)[:, None] * np.ones(5),
               "flux_sys_err": np.where(np.arange(n) % 2, 12.0, 3.0)[:, None] ** 0.5 * np.ones(5),
               "flags": np.zeros(n, np.int64), "position": rng.standard_normal((n, 2)),
               "position_err": np.ones((n, 2)), "color": rng.standard_normal(n), "color_err": np.ones(n)}
    rows = injection.error_score(scenes, columns)
    assert rows["width"] == pytest.approx(2, rel=0.06)
    assert rows["color_width"] == pytest.approx(1, rel=0.06)
    assert rows["position_width"] == pytest.approx(1, rel=0.06)
    assert rows["missed"] == rows["beyond_3_total"] < rows["beyond_3"]
    assert rows["untrusted"] == 0
    assert np.isnan(rows["untrusted_right"])


def test_solutions_survive_their_file(blend: Blend, light: np.ndarray, hst: Path, tmp_path: Path) -> None:
    scenes = injection.inject_all([blend], hst)
    none = np.zeros(0, np.int64)
    made = solutions.Solution({2: [light], 4: [light]}, {"flux": np.array([s.flux for s in scenes])}, none, none, 3.0)
    made.write(tmp_path / "made.npz")
    figures = solutions.Solution.read(tmp_path / "made.npz").figures([blend], scenes, {blend.number})
    assert figures["injected"]["error"] == 0
    assert figures["hidden_2"]["pooled_5"] == made.figures([blend], scenes, {4})["hidden_2"]["pooled_5"]
    assert figures["n_blend"] == 1


def test_peers_see_no_hidden_pixel(blend: Blend) -> None:
    weight = hidden.given_weights(blend, 4)
    loud = np.where(hidden.hide(blend, 4), 1e9, blend.image)
    np.testing.assert_array_equal(solutions.filled(loud, weight), solutions.filled(blend.image, weight))
    assert abs(solutions.filled(loud, weight)).max() < 1e4
