"""Learning of detail: the covariance of made-up galaxies is found again, and the evidence is highest for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

for module in ("torch", "galsim", "galcheat", "zuko"):
    pytest.importorskip(module)

from astropy.io import fits  # noqa: E402

from deblendrt.training.detail import galaxies, learning  # noqa: E402

N = 6  # functions
SAME = np.eye(N)[None]  # no symmetry but the identity


def made_up(covariance: NDArray[np.float64], n: int, noise: float, seed: int) -> learning.Statistics:
    """Galaxies whose detail has a covariance, seen with noise of different precision in each direction."""
    rng = np.random.default_rng(seed)
    detail = rng.multivariate_normal(np.zeros(N), covariance, n)
    precision = np.array([np.diag(rng.uniform(0.5, 2.0, N)) / noise**2 for _ in range(n)])
    seen = detail + np.array([rng.multivariate_normal(np.zeros(N), np.linalg.inv(p)) for p in precision])
    return learning.Statistics(precision, np.einsum("nij,nj->ni", precision, seen), np.ones((n, N)))


@pytest.fixture
def truth() -> NDArray[np.float64]:
    rng = np.random.default_rng(7)
    turned = np.linalg.qr(rng.standard_normal((N, N)))[0]
    covariance: NDArray[np.float64] = turned * (0.1 / (1 + np.arange(N))) ** 2 @ turned.T
    return covariance


def test_covariance_is_found_again(truth: NDArray[np.float64]) -> None:
    found, _ = learning.learn(made_up(truth, 1500, 0.01, 1), SAME, 30)
    # scales of single galaxies share the overall factor with the covariance; its form is compared
    found, expected = found / found.trace(), truth / truth.trace()
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)
    assert np.linalg.norm(np.diag(truth.diagonal()) / truth.trace() - expected) > 0.15 * np.linalg.norm(expected)


def test_evidence_prefers_the_truth(truth: NDArray[np.float64]) -> None:
    held_out = made_up(truth, 400, 0.03, 2)
    best = learning.evidence(held_out, truth)
    assert best > 0
    for wrong in (100.0 * truth, 1e-4 * truth, np.diag(truth.diagonal())):
        assert learning.evidence(held_out, wrong) < best


def test_modes_are_a_factor_of_the_covariance(truth: NDArray[np.float64]) -> None:
    gram = np.diag(np.arange(1.0, N + 1))
    modes = learning.leading_modes(truth, gram, N, N + 2)
    np.testing.assert_allclose((modes.T @ modes)[:N, :N], truth, atol=1e-10 * truth.trace())
    assert not modes[:, N:].any()
    light = np.einsum("ij,jk,ik->i", modes[:, :N], gram, modes[:, :N])
    assert (np.diff(light) <= 0).all()
    np.testing.assert_array_equal(learning.leading_modes(truth, gram, 2, N + 2), modes[:2])


def write(path: Path, data: NDArray[np.float64], **keywords: float) -> None:
    unit = fits.ImageHDU(data)
    for key, value in keywords.items():
        unit.header[key] = value
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)


def test_stamps_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.fits", np.ones((5, 7)), PIXSCALE=0.03, PSF_FWHM=0.1)
    write(tmp_path / "b.fits", np.ones((4, 4)), PIXSCALE=0.05)
    first, second = galaxies.read_galaxies(tmp_path)
    assert (first.image.shape, first.pixel_scale, first.psf_fwhm) == ((5, 7), 0.03, 0.1)
    assert (second.pixel_scale, second.psf_fwhm) == (0.05, 0.0)
    alone, = galaxies.read_galaxies(tmp_path / "b.fits")
    assert (alone.image.shape, alone.pixel_scale) == ((4, 4), 0.05)


@pytest.mark.parametrize(("data", "keywords", "message"), [
    (np.ones((4, 4)), {}, r"a\.fits\[1\]: expected the keyword PIXSCALE"),
    (np.ones((4, 4)), {"PIXSCALE": -1.0}, "PIXSCALE"),
    (np.full((4, 4), np.nan), {"PIXSCALE": 0.03}, "finite image"),
    (np.ones((2, 4, 4)), {"PIXSCALE": 0.03}, "two dimensions"),
])
def test_wrong_stamps_are_named(tmp_path: Path, data: NDArray[np.float64], keywords: dict[str, float],
                                message: str) -> None:
    write(tmp_path / "a.fits", data, **keywords)
    with pytest.raises(ValueError, match=message):
        galaxies.read_galaxies(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no FITS image"):
        galaxies.read_galaxies(tmp_path)
