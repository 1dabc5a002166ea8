"""The deblending encoder: a noisy, blended cutout to a start for the latents of its central source.

An alternative to the engine's linear start. It sees the whitened cutout (image * sqrt(inverse variance)), where the
centre lies within its pixel, and a summary of the PSF (FWHM per band) and noise, and returns a full latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLUX_SCALE = 10.0  # apertures' whitened fluxes are compressed by asinh(x / FLUX_SCALE)


class DeblendingEncoder(nn.Module):
    """A small convolutional network.

    Parameters
    ----------
    n_shape, n_band : int
    cutout_size : int [pixel]
        Odd; larger cutouts are not accepted.
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
        """Latent start.

        Parameters
        ----------
        cutouts : Tensor, float (n_source, n_band, cutout_size, cutout_size)
            Whitened, the source's anchor pixel in the middle.
        offsets : Tensor, float (n_source, 2) [pixel]
            Sub-pixel position relative to the anchor pixel.
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
