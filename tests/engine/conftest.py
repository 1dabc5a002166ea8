"""A result with known images, made without a model, and scenes of toy galaxies to deblend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import ToyModel, gaussian_psf
from toy_scenes import make_scene

from deblendrt.engine.compute.drawing import TILE
from deblendrt.engine.compute.folded_bases import FoldedBases
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.folding import fold_bundle
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.scene.images import ReadyImages
from deblendrt.engine.scene.scene import Scene, make_scenes

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
        phi=phi, gram=np.matmul(phi, phi.transpose(0, 2, 1)).astype(np.float64),
        outer=np.zeros((n_band, 2, 0), np.float32),
        full_gram=np.matmul(phi, phi.transpose(0, 2, 1)).astype(np.float64), fwhm=ones * 4, window=WINDOW, half=half,
        full_window=WINDOW, binning=1, residual=ones * 0, narrow=ones < 0, norm=ones,
    )
    bases = FoldedBases(lambda images: folded)
    bases.add(np.full((n_band, 5, 5), 0.04))
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
    inverse_variance = np.full((n_band, *shape), 0.25, np.float32)
    inverse_variance[:, :5, :5] = 0
    scene = Scene(
        images=ReadyImages(np.zeros((n_band, *shape), np.float32), inverse_variance), centers=center, flags=flags,
        psf=None, star=np.arange(n_source) == 3, auto=np.arange(n_source) > 3, band_present=ones > 0,
        n_pixel=np.count_nonzero(inverse_variance), name="toy",
    )
    result = DeblendResult(
        bands=tuple(bands), source_id=np.arange(n_source), source_start=np.array([0, n_source]),
        scene_index=np.zeros(n_source, np.int64), center=center, position=center * nan[:, None],
        latent=np.zeros((n_source, n_band + 4), np.float32), flux=flux, flux_err=np.sqrt(flux),
        flux_sys_err=0.01 * flux, flux_cov=flux[:, :, None] * np.eye(n_band),
        blend=np.where(fitted, np.cumsum(fitted) - 1, -1),
        blend_flux_cov=[np.diag(row).reshape(1, n_band, 1, n_band).astype(np.float32) for row in flux[fitted]],
        position_err=0.1 * nan[:, None] * np.ones(2), redistributed_flux=flux, redistributed_flux_err=np.sqrt(flux),
        aperture_flux=0.5 * flux, aperture_flux_err=0.5 * np.sqrt(flux),
        moments=nan[:, None] * np.array([2.0, 1.5, 0.1]), ellipticity=nan[:, None] * np.array([0.2, 0.1]),
        ellipticity_err=0.05 * nan[:, None] * np.ones(2), blendedness=0.1 * nan[:, None] * np.ones(n_band),
        flux_overlap=0.2 * flux, max_overlap=0.3 * nan[:, None] * np.ones(n_band), map_flux=flux, chi2=100 * nan,
        n_pixel=np.where(fitted, 90, 0), reduced_chi2=100 / 90 * nan, log_prior=nan, flags=flags,
        enclosed=nan[:, None] * np.ones(n_band), scenes=[scene], scene_chi2=np.array([1.0]),
        scene_n_pixel=np.array([100]), objective=np.array([1.0]), sky=np.zeros((1, n_band)),
        sky_err=np.zeros((1, n_band)), coefficients=coefficients,
        star=np.arange(n_source) == 3, star_probability=np.where(fitted, np.arange(n_source) == 3, np.nan),
        extent=np.zeros(n_source, np.int8), anchor=np.where(fitted[:, None], np.rint(center), 0).astype(np.int64),
        folded=bases, folded_index=np.zeros(n_source, np.int64), model_name="toy", model_version="1",
        model_sha256="0" * 64, solver="gauss_newton", n_iteration=15, aperture_diameter=1.2,
    )
    noisy = result.model(0) + rng.normal(0, 2, scene.image.shape)
    scene.image[:] = np.where(scene.inverse_variance > 0, noisy, 0)
    return result


def make_random_result(bundle: Bundle, shapes: Sequence[tuple[int, int]], per_scene: Sequence[int],
                       psf: Sequence[np.ndarray | None], seed: int = 0) -> DeblendResult:
    """Random numbers in every field. Not fitted: 2 (centre NaN), 5 (no data, at source 4's place), -1 (off image)."""
    rng = np.random.default_rng(seed)
    n, n_band, n_scene = sum(per_scene), len(bundle.bands), len(shapes)
    center = [rng.uniform(0, 1, (m, 2)) * [n_x - 1, n_y - 1] for m, (n_y, n_x) in zip(per_scene, shapes, strict=True)]
    if n:
        center[0][2] = np.nan
        center[0][5] = center[0][4]
        center[[k for k in range(n_scene) if per_scene[k]][-1]][-1] = -50, 3
    mask = [np.zeros(shape, bool) for shape in shapes]
    for bad in mask:
        bad[3:6] = True
    scenes = []
    for k in range(n_scene):  # one by one: some have a PSF and some not
        scenes += make_scenes(rng.normal(size=(1, n_band, *shapes[k])), [center[k]], variance=2.0, mask=[mask[k]],
                              psf="nominal" if psf[k] is None else psf[k], bundle_bands=bundle.bands,
                              bundle_pixel_scale=0.2, window_half=7)
    nominal = np.asarray(bundle.psf, np.float64)
    folded = FoldedBases(partial(fold_bundle, bundle))
    folded_index = np.repeat([folded.add(nominal if scene.psf is None else scene.psf) for scene in scenes], per_scene)
    flags = np.concatenate([np.zeros(0, np.int64), *[scene.flags for scene in scenes]])
    flags[5:6] |= Flag.NO_DATA
    fitted = (flags & NOT_FITTED) == 0
    flags[fitted] |= rng.choice([0, Flag.POOR_FIT, Flag.NOT_CONVERGED], int(fitted.sum()), p=[0.8, 0.1, 0.1])
    scene_index = np.repeat(np.arange(n_scene), per_scene)
    blend = np.full(n, -1)  # a third as many as sources: many have several members, next to each other or not
    label = 1000 * scene_index + rng.integers(0, max(n // 3, 1), n)
    blend[fitted] = np.unique(label[fitted], return_inverse=True)[1]

    def values(*shape: int) -> np.ndarray:
        array = rng.normal(size=(n, *shape))
        array[~fitted] = np.nan
        return array

    flux_cov, blend_flux_cov = values(n_band, n_band), []
    for k in range(blend.max(initial=-1) + 1):
        rows = np.flatnonzero(blend == k)
        root = rng.normal(size=(len(rows) * n_band, 2 * len(rows) * n_band))
        covariance = (root @ root.T).reshape(len(rows), n_band, len(rows), n_band)
        flux_cov[rows] = covariance[np.arange(len(rows)), :, np.arange(len(rows))]
        blend_flux_cov.append(covariance.astype(np.float32))
    position, chi2 = np.concatenate([np.zeros((0, 2)), *center]) + values(2), values()
    return DeblendResult(
        bands=tuple(bundle.bands), source_id=np.arange(n), source_start=np.cumsum([0, *per_scene]),
        scene_index=scene_index,
        center=np.concatenate([np.zeros((0, 2)), *center]), position=position, latent=values(9).astype(np.float32),
        flux=values(n_band), flux_err=values(n_band), flux_sys_err=values(n_band), flux_cov=flux_cov, blend=blend,
        blend_flux_cov=blend_flux_cov, position_err=values(2), redistributed_flux=values(n_band),
        redistributed_flux_err=values(n_band), aperture_flux=values(n_band), aperture_flux_err=values(n_band),
        moments=values(3), ellipticity=values(2), ellipticity_err=values(2), blendedness=values(n_band),
        flux_overlap=values(n_band), max_overlap=values(n_band), map_flux=np.abs(values(n_band)), chi2=chi2,
        n_pixel=np.where(fitted, 100, 0), reduced_chi2=chi2 / 100, log_prior=values(),
        flags=flags, enclosed=values(n_band), scenes=scenes, scene_chi2=rng.random(n_scene),
        scene_n_pixel=np.array([scene.n_pixel for scene in scenes], np.int64), objective=rng.random(n_scene),
        coefficients=values(n_band, bundle.n_basis).astype(np.float32),
        star=np.concatenate([np.zeros(0, bool), *[scene.star for scene in scenes]]),
        star_probability=np.abs(values()), extent=np.zeros(len(flags), np.int8),
        anchor=np.concatenate([np.zeros((0, 2), np.int64), *[scene.anchors for scene in scenes]]), folded=folded,
        folded_index=folded_index.astype(np.int64), model_name=bundle.name, model_version=bundle.model_version,
        model_sha256=bundle.sha256, solver="gauss_newton", n_iteration=15, aperture_diameter=1.2,
        sky=0.1 * rng.normal(size=(n_scene, n_band)), sky_err=rng.random((n_scene, n_band)),
    )


@pytest.fixture
def random_result(toy_bundle: Path) -> Callable[..., DeblendResult]:
    """The function `make_random_result` with the toy bundle, whose basis has 7 images of 11 pixels, in bands g, i."""
    bundle = load_bundle(toy_bundle)

    def make(*arguments: Any, **options: Any) -> DeblendResult:
        return make_random_result(bundle, *arguments, **options)

    return make


@pytest.fixture
def result(random_result: Callable[..., DeblendResult]) -> DeblendResult:
    """Three scenes of two PSFs, one without sources."""
    wide = np.stack([gaussian_psf(fwhm, 13) for fwhm in (3.8, 4.4)])
    return random_result([(30, 40), (25, 8), (12, 12)], [TILE + 9, 3, 0], [wide, None, wide])


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
