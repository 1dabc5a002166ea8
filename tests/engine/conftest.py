"""A result with known images, made without a model, and scenes of toy galaxies to deblend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from toy_model import ToyModel
from toy_scenes import make_scene

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.flags import NOT_FITTED, Flag
from deblendrt.engine.psf import FoldedBasis
from deblendrt.engine.result import DeblendResult
from deblendrt.engine.scene import Scene

WINDOW = 41


def make_toy_result(
    bands: str = "ugrizy", n_source: int = 6, shape: tuple[int, int] = (60, 70), seed: int = 0
) -> DeblendResult:
    """One scene of round galaxies of two sizes; source 1 is off the image, pixels of a corner are masked."""
    rng = np.random.default_rng(seed)
    n_band, half = len(bands), WINDOW // 2
    r = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1])
    images = np.stack([np.exp(-r / scale) / np.exp(-r / scale).sum() for scale in (1.5, 3.0)]).reshape(2, -1)
    phi = np.repeat(images[None], n_band, axis=0).astype(np.float32)
    ones = np.ones(n_band)
    folded = FoldedBasis(
        phi=phi,
        phi_t=np.ascontiguousarray(phi.transpose(0, 2, 1)),
        gram=np.matmul(phi, phi.transpose(0, 2, 1)).astype(np.float64),
        flux=phi.sum(axis=2).astype(np.float64),
        fwhm=ones * 4,
        window=WINDOW,
        half=half,
        residual=ones * 0,
        narrow=ones < 0,
        norm=ones,
    )
    center = rng.uniform(4, [shape[1] - 4, shape[0] - 4], (n_source, 2))
    flags = np.zeros(n_source, np.int64)
    if n_source > 2:
        center[1], flags[1] = (-30, 5), Flag.OFF_IMAGE
        flags[2] = Flag.POOR_FIT | Flag.UNMODELLED_FLUX
    fitted = (flags & NOT_FITTED) == 0
    flux = 10 ** rng.uniform(2.5, 4.5, (n_source, 1)) * rng.uniform(0.5, 1.5, (n_source, n_band))
    flux[~fitted] = np.nan
    coefficients = np.zeros((n_source, n_band, 2), np.float32)
    coefficients[np.arange(n_source), :, np.arange(n_source) % 2] = flux
    nan = np.where(fitted, 1.0, np.nan)
    scene = Scene(
        image=np.zeros((n_band, *shape), np.float32),
        inverse_variance=np.full((n_band, *shape), 0.25, np.float32),
        centers=center,
        flags=flags,
        psf=None,
        band_present=ones > 0,
        name="toy",
    )
    scene.inverse_variance[:, :5, :5] = 0
    result = DeblendResult(
        bands=tuple(bands),
        source_start=np.array([0, n_source]),
        scene_index=np.zeros(n_source, np.int64),
        center=center,
        position=center * nan[:, None],
        latent=np.zeros((n_source, n_band + 4), np.float32),
        flux=flux,
        flux_err=np.sqrt(flux),
        map_flux=flux,
        chi2=100 * nan,
        n_pixel=np.where(fitted, 90, 0),
        log_prior=nan,
        flags=flags,
        enclosed=nan[:, None] * np.ones(n_band),
        scenes=[scene],
        scene_chi2=np.array([1.0]),
        scene_n_pixel=np.array([100]),
        objective=np.array([1.0]),
        coefficients=coefficients,
        anchor=np.where(fitted[:, None], np.rint(center), 0).astype(np.int64),
        folded=[folded],
        folded_index=np.array([0]),
        model_name="toy",
        model_version="1",
    )
    noisy = result.model(0) + rng.normal(0, 2, scene.image.shape)
    scene.image[:] = np.where(scene.inverse_variance > 0, noisy, 0)
    return result


@pytest.fixture
def toy_result() -> Callable[..., DeblendResult]:
    """The function `make_toy_result`."""
    return make_toy_result


@pytest.fixture(scope="session")
def scene(toy_deblender: Deblender, toy_model: ToyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair, a neighbour and a source alone."""
    return make_scene(toy_deblender, toy_model, [[14, 16], [19, 18], [24, 25], [41, 35]])


@pytest.fixture(scope="session")
def batch(toy_deblender: Deblender, toy_model: ToyModel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scenes of several sizes and numbers of sources, one without any."""
    rng = np.random.default_rng(1)
    images, centers = [], []
    for k, n in enumerate((3, 1, 6, 2, 0, 5)):
        shape = (44 + 5 * k, 60 - 4 * k)
        anchor = rng.integers(5, [shape[1] - 5, shape[0] - 5], (n, 2))
        image, center, _ = make_scene(toy_deblender, toy_model, anchor.reshape(-1, 2), shape, seed=k)
        images.append(image)
        centers.append(center)
    return images, centers
