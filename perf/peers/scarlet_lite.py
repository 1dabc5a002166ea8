"""Rubin's scarlet_lite on the exchanged scenes, in its own environment.

    python -m perf.peers.scarlet_lite

The recipe is scarlet_lite's own (Getting Started): two-component sources initialised on the chi2 image, spectra by
least squares, proximal Adam, `e_rel` = 1e-4. Centres are rounded to whole pixels, because it accepts no others. Images
are given in units of each band's noise, because the initial threshold compares a chi2 image with a noise level and so
depends on the unit.
"""

from __future__ import annotations

import functools
import importlib.metadata

import lsst.scarlet.lite as scl
import numpy as np

from perf.peers import exchange

MODEL_PSF_SIGMA = 0.8  # pixel
MONOTONICITY_SHAPE = (101, 101)  # pixel: the scenes' shape; it grows for a larger source
HOW = ("its own recipe: FactorizedInitialization, fit_spectra, adaprox, e_rel 1e-4 unless said otherwise, at least 15 "
       "iterations; given centres rounded to pixels and fixed; total flux of the model")


@functools.lru_cache(maxsize=1)
def _monotonicity() -> scl.operators.Monotonicity:
    return scl.operators.Monotonicity(MONOTONICITY_SHAPE)


def deblend(scene: exchange.GivenScene, max_iter: int = 200, e_rel: float = 1e-4) -> exchange.Model:
    """Fit a scene. The time is that of initialisation and fit."""
    start = exchange.clock()
    seen = np.isfinite(scene.variance)
    noise = np.sqrt(np.nanmedian(np.where(seen, scene.variance, np.nan), (1, 2)))[:, None, None]
    variance = np.where(seen, scene.variance / noise**2, 1).astype(np.float32)
    weights = (seen / variance).astype(np.float32)
    model_psf = scl.utils.integrated_circular_gaussian(sigma=MODEL_PSF_SIGMA).astype(np.float32)
    observation = scl.Observation((scene.image / noise).astype(np.float32), variance, weights,
                                  scene.psf.astype(np.float32), model_psf[None], bands=scene.bands)
    centers = [(int(np.rint(y)), int(np.rint(x))) for x, y in scene.centers]
    sources = scl.initialization.FactorizedInitialization(observation, centers, monotonicity=_monotonicity()).sources
    blend = scl.Blend(sources, observation).fit_spectra()
    blend.parameterize(functools.partial(scl.component.default_adaprox_parameterization,
                                         noise_rms=observation.noise_rms / 10))
    iterations, _ = blend.fit(max_iter, e_rel=e_rel)
    seconds = exchange.clock() - start
    models = [source.get_model() for source in sources]
    # the difference kernels sum to 1 / the sum of the model PSF, which is cut at the edge of its stamp
    flux = np.stack([model.data.sum((1, 2)) * noise[:, 0, 0] / model_psf.sum() for model in models])
    image = np.stack([observation.convolve(model.project(bbox=observation.bbox)).data * noise for model in models])
    return exchange.Model(flux.astype(np.float64), image.astype(np.float32), seconds, exchange.NO_TIME, iterations, "")


if __name__ == "__main__":
    exchange.serve(deblend, importlib.metadata.version("lsst-scarlet-lite"), HOW)
