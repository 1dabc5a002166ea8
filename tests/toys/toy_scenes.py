"""Scenes of toy galaxies for tests of whole deblendings, and ways to compare results."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
from tolerances import REORDERED
from toy_model import N_BAND, SKY_SIGMA, ToyModel, add_noise, draw_latent, paint

from deblendrt.engine.compute import decoding, drawing
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult

VARIANCE = np.array(SKY_SIGMA) ** 2
CONVERGED = 40  # iterations
FIELDS = ("position", "latent", "flux", "flux_err", "flux_sys_err", "map_flux", "chi2", "n_pixel", "log_prior", "flags",
          "enclosed", "coefficients")


def make_scene(deblender: Deblender, model: ToyModel, anchor: Any, shape: tuple[int, int] = (48, 52),
               seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy image, its centres and the true fluxes."""
    rng = np.random.default_rng(seed)
    anchor = np.asarray(anchor)
    latent = draw_latent(len(anchor), rng)
    image = add_noise(paint(model, deblender.fold(None), latent, anchor, shape), rng)
    return image, anchor + latent[:, N_BAND : N_BAND + 2], np.exp(latent[:, :N_BAND])


def rows(result: DeblendResult, i_scene: int) -> list[bytes]:
    return [np.ascontiguousarray(getattr(result, name)[result.sources(i_scene)]).tobytes() for name in FIELDS]


def digest(result: DeblendResult) -> str:
    content = hashlib.sha256()
    for name in FIELDS:
        content.update(np.ascontiguousarray(getattr(result, name)).tobytes())
    return content.hexdigest()


def changed(result: DeblendResult, name: str, rows: Any, value: Any) -> DeblendResult:
    """The result with other values in some rows of one of its arrays, which are read-only."""
    array = getattr(result, name).copy()
    array[rows] = value
    return dataclasses.replace(result, **{name: array})


def assert_close(a: DeblendResult, b: DeblendResult, order: Any = slice(None), shift: Any = 0.0) -> None:
    """Check that two results agree to REORDERED of their errors."""
    assert (np.abs(a.flux[order] - b.flux) < REORDERED * b.flux_err).all()
    np.testing.assert_allclose(a.flux_err[order], b.flux_err, rtol=REORDERED)
    np.testing.assert_allclose(a.position[order] + shift, b.position, atol=0.1 * REORDERED)
    np.testing.assert_allclose(a.latent[order][:, N_BAND + 2 :], b.latent[:, N_BAND + 2 :], atol=0.01)


def star_field(deblender: Deblender, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw two stars and two galaxies with the model's sky noise: image, centres, fluxes, and which are stars."""
    bundle, rng = deblender.bundle, np.random.default_rng(seed)
    folded = deblender.fold(None)
    anchor = np.array([[40, 40], [52, 45], [80, 70], [60, 75]])
    offset = rng.uniform(-0.4, 0.4, (4, 2))
    flux = np.exp(rng.uniform(np.log(2e3), np.log(2e4), (4, 1)) + 0.3 * rng.standard_normal((4, bundle.n_band)))
    latent = np.concatenate([np.log(flux), offset, 0.5 * rng.standard_normal((4, bundle.n_shape))], 1)
    coefficients = deblender.runtime.decode(latent)
    star = np.array([True, False, True, False])
    coefficients[star] = flux[star, :, None] * decoding.point_sources(bundle, offset[star])[0][:, None]
    image = np.zeros((bundle.n_band, 120, 110), np.float32)
    drawing.render(coefficients, folded, anchor - folded.half, np.zeros(4, bool), [image], np.zeros(4, np.int64))
    noisy = image + np.asarray(bundle.sky_sigma)[:, None, None] * rng.standard_normal(image.shape)
    return noisy, anchor + offset, flux, star
