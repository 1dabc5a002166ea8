"""Blended cutouts for the deblending encoder, and its training.

Blends are made from basis coefficients, not drawn: a batch shares one PSF, so its stamps are one matrix product with
the folded basis.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deblendrt.engine.compute import drawing, folding
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.model import outskirts
from deblendrt.engine.scene import psf
from deblendrt.training import survey
from deblendrt.training.config import Config
from deblendrt.training.decoder import SHIFT_ORDER
from deblendrt.training.encoder import DeblendingEncoder
from deblendrt.training.vae import GalaxyEncoder, TrainingSet, posterior

FloatArray = NDArray[np.float32]

MEAN_NEIGHBOURS = 2.0  # in the cutout and 6 pixels around it, Poisson: 130 galaxies per arcmin^2
N_PSF = 16


@dataclasses.dataclass(frozen=True)
class Blends:
    """Cutouts around target galaxies.

    Attributes
    ----------
    cutouts : float32 (n, n_band, size, size)
        Whitened.
    offsets : float32 (n, 2) [pixel]
    psf_summary : float32 (n, 2 n_band)
    rows : int64 (n,)
        The targets' rows in the training set.
    """

    cutouts: FloatArray
    offsets: FloatArray
    psf_summary: FloatArray
    rows: NDArray[np.int64]


def shift_coefficients(coefficients: FloatArray, shift: FloatArray, offsets: FloatArray) -> FloatArray:
    """NumPy twin of `Decoder.shift`, for coefficients (n, ..., n_basis)."""
    dx, dy = (offsets[:, i].reshape(-1, *[1] * (coefficients.ndim - 1)) for i in (0, 1))
    moved = term = coefficients
    for order in range(1, SHIFT_ORDER + 1):
        term = (dx * (term @ shift[0].T) + dy * (term @ shift[1].T)) / order
        moved = moved + term
    return moved.astype(np.float32)


def make_blends(data: TrainingSet, settings: Config, folded: FoldedBasis, fwhm: FloatArray, shift: FloatArray,
                n: int, rng: np.random.Generator) -> Blends:
    """Draw blends that share one PSF.

    Parameters
    ----------
    data : TrainingSet
    settings : Config
    folded : FoldedBasis
    fwhm : float32 (n_band,) [pixel]
    shift : float32 (2, n_basis, n_basis)
    n : int
    rng : numpy.random.Generator

    Returns
    -------
    Blends
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
    return Blends((image / np.sqrt(variance)).astype(np.float32), offsets[:n], summary.astype(np.float32), rows[:n])


def train_encoder(encoder: DeblendingEncoder, galaxy_encoder: GalaxyEncoder, data: TrainingSet, settings: Config,
                  phi: FloatArray, shift: FloatArray, rng: np.random.Generator,
                  generator: torch.Generator) -> list[float]:
    """Regress the isolated galaxies' posterior means and log fluxes from their blended cutouts.

    Parameters
    ----------
    encoder : DeblendingEncoder
        Trained in place.
    galaxy_encoder : GalaxyEncoder
    data : TrainingSet
    settings : Config
    phi : float32 (n_basis, size, size)
    shift : float32 (2, n_basis, n_basis)
    rng : numpy.random.Generator
        Draws the blends.
    generator : torch.Generator
        Shuffles them.

    Returns
    -------
    list of float
        Mean loss of each epoch.
    """
    from tqdm import tqdm

    spec, depth = settings.encoder, survey.depth(settings.survey)
    chunks = []
    per_psf = -(-spec.n_blend // N_PSF)
    core, _ = outskirts.split(phi, settings.basis.core_size, settings.basis.binning)  # enough for a start
    for _ in tqdm(range(N_PSF), "blends", disable=None):
        drawn = survey.random_psf(depth, rng)
        folded = folding.fold(core, drawn.image, settings.basis.reference_psf_sigma)
        fwhm = np.array([psf.psf_fwhm(image) for image in drawn.image], np.float32)
        chunks += [make_blends(data, settings, folded, fwhm, shift, min(500, per_psf - a), rng)
                   for a in range(0, per_psf, 500)]
    cutouts, offsets, summary, rows = (np.concatenate([getattr(c, f.name) for c in chunks])
                                       for f in dataclasses.fields(Blends))
    sky = torch.tensor(depth.sky_sigma, dtype=torch.float32)
    chosen = TrainingSet(data.maps[torch.from_numpy(rows)], data.flux[torch.from_numpy(rows)])
    mean, sigma = posterior(galaxy_encoder, chosen, sky)
    log_flux = chosen.flux.sum(1).log()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=spec.learning_rate)
    n_batch = len(rows) // spec.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.n_epoch * n_batch)
    losses = []
    for _ in (progress := tqdm(range(spec.n_epoch), "encoder", disable=None)):
        total = 0.0
        order = torch.randperm(len(rows), generator=generator)
        for batch in order[: n_batch * spec.batch_size].split(spec.batch_size):
            out = encoder(*(torch.from_numpy(a[batch.numpy()]) for a in (cutouts, offsets, summary)))
            loss = encoder_loss(out, mean[batch], sigma[batch], log_flux[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item() / n_batch
        losses.append(total)
        progress.set_postfix(loss=f"{total:.3f}")
    return losses


def encoder_loss(out: Tensor, mean: Tensor, sigma: Tensor, log_flux: Tensor) -> Tensor:
    """Robust squared errors: shapes in units of their posterior width (at least 0.5), log fluxes in units of 0.2."""
    n_band = log_flux.shape[1]
    shape_error = (out[:, n_band + 2 :] - mean) / sigma.clamp(min=0.5)
    flux_error = (out[:, :n_band] - log_flux) / 0.2
    return nn.functional.huber_loss(shape_error, torch.zeros_like(shape_error)) + nn.functional.huber_loss(
        flux_error, torch.zeros_like(flux_error), delta=2.0)
