"""Scenes drawn by a bundle's own model: for timings and for parity between engines, where GalSim is not at hand.

Accuracy is never measured on them: the model has no error on its own galaxies.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.units import AB_ZERO_POINT

SIDE, SPREAD, MARGIN = 101, 12.0, 13  # pixel
N_SOURCE = (2, 8)
MAGNITUDES = (19.0, 25.3)


@dataclasses.dataclass(frozen=True)
class DrawnScenes:
    """Images with their centres.

    Attributes
    ----------
    image : float32 (n_scene, n_band, SIDE, SIDE) [nJy]
    centers : list of float64 (n_source, 2) [pixel]
    flux : list of float64 (n_source, n_band) [nJy]
        Drawn with.
    variance : float64 (n_band,) [nJy^2]
    """

    image: NDArray[np.float32]
    centers: list[NDArray[np.float64]]
    flux: list[NDArray[np.float64]]
    variance: NDArray[np.float64]

    @property
    def n_source(self) -> int:
        """In all scenes."""
        return sum(map(len, self.centers))


def draw_scenes(deblender: Deblender, n_scene: int, seed: int = 0) -> DrawnScenes:
    """Draw scenes; scene k does not depend on how many there are.

    Parameters
    ----------
    deblender : Deblender
        On the CPU.
    n_scene : int
    seed : int

    Returns
    -------
    DrawnScenes
    """
    bundle, folded = deblender.bundle, deblender.fold(None)
    half, n_band = folded.half, bundle.n_band
    sigma = np.asarray(bundle.sky_sigma)
    image = np.empty((n_scene, n_band, SIDE, SIDE), np.float32)
    centers, fluxes = [], []
    for k in range(n_scene):
        rng = np.random.default_rng([seed, k])
        n = int(rng.integers(N_SOURCE[0], N_SOURCE[1] + 1))
        middle = rng.uniform(MARGIN + SPREAD, SIDE - MARGIN - SPREAD, 2)
        center = np.clip(middle + SPREAD * rng.standard_normal((n, 2)), MARGIN, SIDE - 1 - MARGIN)
        anchor = np.rint(center).astype(np.int64)
        magnitude = MAGNITUDES[0] + (MAGNITUDES[1] - MAGNITUDES[0]) * np.sqrt(rng.random((n, 1)))
        color = np.asarray(bundle.mean_color) + np.asarray(bundle.color_sigma) * rng.standard_normal((n, n_band))
        log_flux = 0.4 * np.log(10) * (AB_ZERO_POINT - magnitude) + color
        shape = np.asarray(bundle.start_shape) + 0.7 * rng.standard_normal((n, bundle.n_shape))
        coefficients = deblender.runtime.decode(np.concatenate([log_flux, center - anchor, shape], 1))
        canvas = np.zeros((n_band, SIDE + 2 * half, SIDE + 2 * half), np.float32)
        drawing.render(coefficients, folded, anchor, np.zeros(n, bool), [canvas], np.zeros(n, np.int64))
        noise = sigma[:, None, None] * rng.standard_normal((n_band, SIDE, SIDE))
        image[k] = canvas[:, half:-half, half:-half] + noise
        centers.append(center)
        fluxes.append(np.exp(log_flux))
    return DrawnScenes(image, centers, fluxes, sigma**2)
