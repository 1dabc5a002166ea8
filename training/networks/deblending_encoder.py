"""The deblending encoder: a noisy, blended cutout to a start for the latents of its central source.

The engine starts its descent with it. The encoder sees the whitened cutout (image * sqrt(inverse variance)), the place
of the centre within its pixel, and the FWHM of the PSF and the noise in every band. It returns a full latent. Training
regresses it on blends, see `deblendrt.training.networks.encoder_blends`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deblendrt.engine.compute import folding
from deblendrt.engine.model import outskirts
from deblendrt.engine.scene.psf.images import psf_fwhm
from deblendrt.training.config import Config
from deblendrt.training.networks.encoder_blends import EncoderBlends, make_blends
from deblendrt.training.networks.training_set import TrainingSet
from deblendrt.training.networks.vae import GalaxyEncoder, posterior
from deblendrt.training.simulation import survey

FLUX_SCALE = 10.0  # whitened fluxes are compressed by asinh(x / FLUX_SCALE)
N_PSF = 16  # random PSFs of the training blends


class DeblendingEncoder(nn.Module):
    """A small convolutional network from cutouts to latents.

    Parameters
    ----------
    n_shape, n_band : int
    cutout_size : int [pixel]
        Side of the cutouts, odd.
    width : int
        Channels of the first convolution.
    """

    def __init__(self, *, n_shape: int, n_band: int, cutout_size: int, width: int = 24) -> None:
        super().__init__()
        self.n_shape, self.n_band, self.cutout_size = n_shape, n_band, cutout_size
        self.convolutions = nn.Sequential(
            nn.Conv2d(n_band, width, 5, stride=2, padding=2), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 3 * width, 3, stride=2, padding=1), nn.SiLU(),
        )
        side = (((cutout_size + 1) // 2 + 1) // 2 + 1) // 2
        self.head = nn.Sequential(nn.Linear(3 * width * side * side + 2 * n_band + 2 + n_band, 192), nn.SiLU(),
                                  nn.Linear(192, 192), nn.SiLU(), nn.Linear(192, n_shape + n_band))

    def forward(self, cutouts: Tensor, offsets: Tensor, psf_summary: Tensor) -> Tensor:
        """Return the latents to start from.

        Parameters
        ----------
        cutouts : Tensor, float (n_source, n_band, cutout_size, cutout_size)
            Whitened, the source's central pixel in the middle.
        offsets : Tensor, float (n_source, 2) [pixel]
            Centre relative to the central pixel.
        psf_summary : Tensor, float (n_source, 2 n_band)
            FWHM [pixel] and ln(noise sigma per pixel [nJy]) per band.

        Returns
        -------
        Tensor, float (n_source, n_latent)
        """
        fwhm, log_sigma = psf_summary.tensor_split(2, 1)
        middle, reach = self.cutout_size // 2, 3
        core = cutouts[:, :, middle - reach : middle + reach + 1, middle - reach : middle + reach + 1].sum((2, 3))
        core = (core / (FLUX_SCALE * (2 * reach + 1))).asinh()
        features = self.convolutions((cutouts / FLUX_SCALE).asinh()).flatten(1)
        out = self.head(torch.cat([features, fwhm - 4.0, log_sigma - 1.0, offsets, core], 1))
        shape, log_snr = out.tensor_split((self.n_shape,), 1)
        return torch.cat([log_snr + 3.0 * core.clamp(min=0.0) + 3.0 + log_sigma, offsets, shape], 1)


def train_encoder(encoder: DeblendingEncoder, galaxy_encoder: GalaxyEncoder, data: TrainingSet, settings: Config,
                  phi: NDArray[np.float32], shift: NDArray[np.float32], rng: np.random.Generator,
                  generator: torch.Generator) -> list[float]:
    """Train the encoder: regress posterior means and log fluxes of isolated galaxies from their blended cutouts.

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
        Random numbers of the blends.
    generator : torch.Generator
        Random numbers of the order of the batches.

    Returns
    -------
    list of float
        Mean loss of each epoch.
    """
    from tqdm import tqdm

    spec, depth = settings.encoder, survey.depth(settings.survey)
    chunks = []
    per_psf = -(-spec.n_blend // N_PSF)
    # a start needs no outskirts
    core, _ = outskirts.split(phi, settings.basis.core_size, settings.basis.binning)
    for _ in tqdm(range(N_PSF), "blends", disable=None):
        drawn = survey.random_psf(depth, rng)
        folded = folding.fold(core, drawn.image, settings.basis.reference_psf_sigma)
        fwhm = np.array([psf_fwhm(image) for image in drawn.image], np.float32)
        chunks += [make_blends(data, settings, folded, fwhm, shift, min(500, per_psf - a), rng)
                   for a in range(0, per_psf, 500)]
    cutouts, offsets, summary, rows = (np.concatenate([getattr(c, f.name) for c in chunks])
                                       for f in dataclasses.fields(EncoderBlends))
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
