"""Blended cutouts that the deblending encoder is trained on.

Blends are made from basis coefficients and not drawn with GalSim: a batch shares one PSF, so its stamps are one matrix
product with the folded basis.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.training.config import Config
from deblendrt.training.networks.decoder import SHIFT_ORDER
from deblendrt.training.networks.training_set import TrainingSet
from deblendrt.training.simulation import survey

MEAN_NEIGHBOURS = 2.0  # Poisson mean in the cutout and 6 pixels around it: 130 galaxies per arcmin^2


@dataclasses.dataclass(frozen=True)
class EncoderBlends:
    """Blended cutouts around target galaxies.

    Attributes
    ----------
    cutouts : float32 (n, n_band, size, size)
        Whitened.
    offsets : float32 (n, 2) [pixel]
    psf_summary : float32 (n, 2 n_band)
    rows : int64 (n,)
        The targets' rows in the training set.
    """

    cutouts: NDArray[np.float32]
    offsets: NDArray[np.float32]
    psf_summary: NDArray[np.float32]
    rows: NDArray[np.int64]


def shift_coefficients(coefficients: NDArray[np.float32], shift: NDArray[np.float32],
                       offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coefficients (n, ..., n_basis) moved by offsets (n, 2) [pixel]: `Decoder.shift` in NumPy."""
    dx, dy = (offsets[:, i].reshape(-1, *[1] * (coefficients.ndim - 1)) for i in (0, 1))
    moved = term = coefficients
    for order in range(1, SHIFT_ORDER + 1):
        term = (dx * (term @ shift[0].T) + dy * (term @ shift[1].T)) / order
        moved = moved + term
    return moved.astype(np.float32)


def make_blends(data: TrainingSet, settings: Config, folded: FoldedBasis, fwhm: NDArray[np.float32],
                shift: NDArray[np.float32], n: int, rng: np.random.Generator) -> EncoderBlends:
    """Draw random blends that share one PSF.

    Parameters
    ----------
    data : TrainingSet
    settings : Config
    folded : FoldedBasis
        The basis folded with the PSF.
    fwhm : float32 (n_band,) [pixel]
        FWHM of the PSF.
    shift : float32 (2, n_basis, n_basis)
    n : int
    rng : numpy.random.Generator

    Returns
    -------
    EncoderBlends
    """
    size = settings.encoder.cutout_size
    depth = survey.depth(settings.survey)
    n_neighbour = rng.poisson(MEAN_NEIGHBOURS, n)
    owner = np.concatenate([np.arange(n), np.repeat(np.arange(n), n_neighbour)])
    rows = rng.integers(len(data.maps), size=len(owner))
    offsets = rng.uniform(-0.5, 0.5, (len(owner), 2)).astype(np.float32)
    place = rng.integers(-(size // 2) - 6, size // 2 + 7, (len(owner), 2))
    place[:n] = 0
    unit, log_flux = data.total(torch.from_numpy(rows))
    coefficients = (unit * log_flux.exp()[:, :, None]).numpy()
    coefficients = shift_coefficients(coefficients, shift, offsets)
    margin = folded.half + 6 + size // 2
    canvas = [np.zeros((len(depth.bands), 2 * margin + 1, 2 * margin + 1), np.float32) for _ in range(n)]
    drawing.render(coefficients, folded, margin + place - folded.half, np.zeros(len(owner), bool), canvas, owner)
    clean = np.array(canvas)[:, :, margin - size // 2 : margin + size // 2 + 1,
                             margin - size // 2 : margin + size // 2 + 1]
    noise = depth.sky_sigma * np.exp(rng.normal(0, 0.3, (n, 1)))  # deeper and shallower coadds
    variance = noise[:, :, None, None] ** 2 + np.maximum(clean, 0) / depth.counts_per_njy[:, None, None]
    image = clean + np.sqrt(variance) * rng.standard_normal(clean.shape)
    summary = np.concatenate([np.broadcast_to(fwhm, noise.shape), np.log(noise)], 1)
    whitened = (image / np.sqrt(variance)).astype(np.float32)
    return EncoderBlends(whitened, offsets[:n], summary.astype(np.float32), rows[:n])
