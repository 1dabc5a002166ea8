r"""The prior of galaxy shapes: a masked autoregressive flow conditioned on magnitude and colours.

    log p(z | fluxes),   z the shape latents,   context = soft-clipped (ln flux_ref, ln flux_b - ln flux_ref)

The context is clipped smoothly at three standard deviations of the training population: a source of an impossible
colour has the prior of the reddest or bluest galaxies, not an extrapolation.
"""

from __future__ import annotations

import torch
import zuko
from torch import Tensor, nn

CONTEXT_LIMIT = 3.0  # standard deviations


class ShapePrior(nn.Module):
    """Conditional density of the shape latents (zuko's MAF).

    Parameters
    ----------
    n_shape, n_band : int
    reference : int
        Index of the reference band.
    n_transform, hidden : int
        Number of autoregressive transforms, and the width of the two hidden layers of each.
    """

    context_mean: Tensor
    context_scale: Tensor

    def __init__(self, *, n_shape: int, n_band: int, reference: int, n_transform: int, hidden: int) -> None:
        super().__init__()
        self.n_shape, self.n_band, self.reference = n_shape, n_band, reference
        self.flow = zuko.flows.MAF(features=n_shape, context=n_band, transforms=n_transform,
                                   hidden_features=(hidden, hidden), activation=nn.SiLU)
        self.register_buffer("context_mean", torch.zeros(n_band))
        self.register_buffer("context_scale", torch.ones(n_band))

    def raw_context(self, log_flux: Tensor) -> Tensor:
        """Return reference log flux and colours, before standardisation.

        Parameters
        ----------
        log_flux : Tensor, float (n_source, n_band) [ln nJy]

        Returns
        -------
        Tensor, float (n_source, n_band)
            Column `reference` holds the reference band's log flux, the others ln(flux / reference flux).
        """
        reference = log_flux[:, self.reference : self.reference + 1]
        colors = log_flux - reference
        return torch.cat([colors[:, : self.reference], reference, colors[:, self.reference + 1 :]], 1)

    def context(self, log_flux: Tensor) -> Tensor:
        """Standardised and smoothly clipped context of the flow, float (n_source, n_band)."""
        standard = (self.raw_context(log_flux) - self.context_mean) / self.context_scale
        return CONTEXT_LIMIT * torch.tanh(standard / CONTEXT_LIMIT)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the log density of the shapes of latents, given their fluxes.

        Parameters
        ----------
        latent : Tensor, float (n_source, n_latent)

        Returns
        -------
        Tensor, float (n_source,)
        """
        log_flux, _, shape = latent.tensor_split((self.n_band, self.n_band + 2), 1)
        return self.log_prob(shape, log_flux)

    def log_prob(self, shape: Tensor, log_flux: Tensor) -> Tensor:
        """Log density of shapes given log fluxes, float (n_source,)."""
        return self.flow(self.context(log_flux)).log_prob(shape)

    def sample(self, log_flux: Tensor) -> Tensor:
        """Draw a shape for each row of log fluxes, float (n_source, n_shape)."""
        return self.flow(self.context(log_flux)).sample()


def fit_context(prior: ShapePrior, log_flux: Tensor) -> None:
    """Set the context's mean and scale from the training population."""
    raw = prior.raw_context(log_flux)
    prior.context_mean.copy_(raw.mean(0))
    prior.context_scale.copy_(raw.std(0))


def train_flow(prior: ShapePrior, mean: Tensor, sigma: Tensor, log_flux: Tensor, *, batch_size: int, n_step: int,
               learning_rate: float, generator: torch.Generator) -> list[float]:
    """Train the prior: maximum likelihood on samples of the galaxies' posteriors.

    Parameters
    ----------
    prior : ShapePrior
        Trained in place.
    mean, sigma : Tensor, float (n_galaxy, n_shape)
        The VAE's posterior of each training galaxy.
    log_flux : Tensor, float (n_galaxy, n_band) [ln nJy]
    batch_size, n_step : int
    learning_rate : float
        Peak of the learning rate, before a cosine decay.
    generator : torch.Generator

    Returns
    -------
    list of float
        Mean negative log-likelihood of every hundredth step.
    """
    from tqdm import trange

    fit_context(prior, log_flux)
    optimizer = torch.optim.Adam(prior.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_step)
    history = []
    progress = trange(n_step, desc="flow", disable=None)
    for step in progress:
        row = torch.randint(len(mean), (batch_size,), generator=generator)
        shape = mean[row] + sigma[row] * torch.randn(batch_size, prior.n_shape, generator=generator)
        loss = -prior.log_prob(shape, log_flux[row]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            history.append(loss.item())
            progress.set_postfix(nll=f"{loss.item():.3f}")
    return history
