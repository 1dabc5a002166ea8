r"""The VAE of isolated galaxies, trained on basis coefficients.

The misfit of a decoded galaxy is a quadratic form in coefficients, without any pixels. In band b, with the Gram matrix
G_b of the folded basis, the flux F_b and the sky noise s_b,

    chi2 = sum_b F_b^2 / s_b^2 * (t_b - d_b)' G_b (t_b - d_b),     t, d true and decoded coefficients of unit flux.

With the survey's noise as the likelihood, the evidence lower bound is -chi2/2 - KL(q(z|x) || N(0, 1)). For very bright
galaxies chi2 = 1 is a relative misfit below `model_error`. They are weighted down to that error: otherwise a few of
them would determine the gradient. Each batch is turned by one of the square's eight symmetries, exact on the basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deblendrt.training.networks.decoder import Decoder
from deblendrt.training.networks.training_set import TrainingSet

N_GRADIENT = 32  # coefficients of the other bands that the encoder sees: enough for a colour gradient


class GalaxyEncoder(nn.Module):
    """The VAE's encoder: the posterior of the shape latents of an isolated, noiseless galaxy.

    Parameters
    ----------
    n_shape, n_band, n_basis, hidden : int
    reference : int
        Index of the reference band.
    """

    scale: Tensor

    def __init__(self, *, n_shape: int, n_band: int, n_basis: int, hidden: int, reference: int) -> None:
        super().__init__()
        self.n_shape, self.n_band, self.reference = n_shape, n_band, reference
        self.n_gradient = min(N_GRADIENT, n_basis)
        self.net = nn.Sequential(nn.Linear(n_basis + n_band * self.n_gradient + n_band, hidden), nn.SiLU(),
                                 nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * n_shape))
        self.register_buffer("scale", torch.ones(n_basis))

    def forward(self, unit_coefficients: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | galaxy).

        Parameters
        ----------
        unit_coefficients : Tensor, float (n, n_band, n_basis)
            Coefficients of unit total flux in each band, at zero offset.
        log_snr : Tensor, float (n, n_band)
            ln(flux / sky sigma per pixel).

        Returns
        -------
        mean, log_variance : Tensor, float (n, n_shape)
        """
        white = unit_coefficients / self.scale
        reference = white[:, self.reference]
        gradient = 4.0 * (white[:, :, : self.n_gradient] - reference[:, None, : self.n_gradient])
        out = self.net(torch.cat([reference, gradient.flatten(1), (log_snr - 3.0) / 3.0], 1))
        mean, log_variance = out.chunk(2, 1)
        return mean, log_variance.clamp(-18.0, 3.0)


def symmetries(phi: NDArray[np.floating]) -> Tensor:
    """Return the square's eight symmetries as matrices R on coefficients c: ``c @ R``.

    Parameters
    ----------
    phi : float (n_basis, size, size)

    Returns
    -------
    Tensor, float32 (8, n_basis, n_basis)
    """
    flat = phi.reshape(len(phi), -1).astype(np.float64)
    matrices = []
    for turn in range(4):
        for mirror in (False, True):
            turned = np.rot90(phi, turn, (1, 2))
            turned = turned[:, :, ::-1] if mirror else turned
            matrices.append(turned.reshape(len(phi), -1) @ flat.T)
    return torch.tensor(np.array(matrices), dtype=torch.float32)


def initialise(decoder: Decoder, encoder: GalaxyEncoder, data: TrainingSet, phi: NDArray[np.floating],
               shift: NDArray[np.floating]) -> None:
    """Set the networks' buffers from the basis, and from the mean and scatter of the training set.

    Component 0 starts at the mean bulge and component 1 at the mean disk, which breaks the symmetry between them.
    Training may move them.
    """
    decoder.basis_sum.copy_(torch.tensor(phi.sum((1, 2))))
    decoder.shift_x.copy_(torch.tensor(shift[0]))
    decoder.shift_y.copy_(torch.tensor(shift[1]))
    mean = data.maps.mean(0)[: decoder.n_component]
    decoder.unit_map.copy_(mean / (mean @ decoder.basis_sum)[:, None])
    # a floor, since the scatter of high orders is too small to deserve a network output of order one
    scale = data.maps.std((0, 1))
    decoder.map_scale.copy_(scale.clamp(min=1e-3 * float(scale.max())))
    encoder.scale.copy_(decoder.map_scale)


def coefficient_chi2(decoded: Tensor, target: Tensor, log_flux: Tensor, gram: Tensor, sky_sigma: Tensor) -> Tensor:
    """Return chi2 of decoded against true coefficients under sky noise, see the module's docstring.

    Parameters
    ----------
    decoded, target : Tensor, float (n, n_band, n_basis)
        Unit flux.
    log_flux : Tensor, float (n, n_band) [ln nJy]
    gram : Tensor, float (n_band, n_basis, n_basis)
    sky_sigma : Tensor, float (n_band,) [nJy]

    Returns
    -------
    Tensor, float (n,)
    """
    error = ((decoded - target) * (log_flux.exp() / sky_sigma)[:, :, None]).transpose(0, 1)  # (band, n, basis)
    with torch.no_grad():
        pulled = error @ gram
    # the value of error' G error, and its gradient 2 G error without a second product with G, which is symmetric
    return ((2 * error - error.detach()) * pulled).sum((0, 2))


@torch.no_grad()
def squared_snr(data: TrainingSet, gram: Tensor, sky_sigma: Tensor, chunk: int = 4096) -> Tensor:
    """Return the squared signal-to-noise ratio of every galaxy under a Gram matrix, all bands together, float (n,)."""
    found = []
    for rows in torch.arange(len(data.maps)).split(chunk):
        target, log_flux = data.total(rows)
        found.append(coefficient_chi2(torch.zeros_like(target), target, log_flux, gram, sky_sigma))
    return torch.cat(found)


def train_vae(decoder: Decoder, encoder: GalaxyEncoder, data: TrainingSet, *, phi: NDArray[np.floating], grams: Tensor,
              sky_sigma: Tensor, batch_size: int, n_step: int, learning_rate: float, model_error: float,
              generator: torch.Generator, resume: dict[str, Any] | None = None,
              on_checkpoint: Callable[[dict[str, Any]], object] | None = None,
              checkpoint_every: int = 2000) -> list[dict[str, float]]:
    """Train decoder and encoder: maximise the evidence lower bound.

    Parameters
    ----------
    decoder, encoder : Decoder, GalaxyEncoder
        Trained in place. At the end they have the running average of their weights.
    data : TrainingSet
    phi : float (n_basis, size, size)
    grams : Tensor, float (n_psf, n_band, n_basis, n_basis)
        Gram matrices of the basis folded with varied PSFs. Each step takes a random one; bright galaxies are weighted
        down by their signal-to-noise under the first.
    sky_sigma : Tensor, float (n_band,) [nJy]
    batch_size, n_step : int
    learning_rate : float
        Peak of the learning rate, after a linear warm-up and before a cosine decay.
    model_error : float
        Relative misfit below which bright galaxies are weighted down.
    generator : torch.Generator
    resume : dict, optional
        The last state that `on_checkpoint` was called with.
    on_checkpoint : callable(dict), optional
        Called every `checkpoint_every` steps with the state to resume from.
    checkpoint_every : int

    Returns
    -------
    list of dict
        Every 200 steps: step, median chi2, mean kl, loss.
    """
    from tqdm import tqdm

    turns = symmetries(phi)
    bright_weight = 1 / (1 + squared_snr(data, grams[0], sky_sigma) * model_error**2)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    average = [p.detach().clone() for p in parameters]
    history: list[dict[str, float]] = []
    start = 0
    if resume is not None:
        start = int(resume["step"])
        for p, saved in zip(parameters, resume["parameters"], strict=True):
            p.data.copy_(saved)
        average = [a.clone() for a in resume["average"]]
        optimizer.load_state_dict(resume["optimizer"])
        generator.set_state(resume["generator"])
        history = list(resume["history"])
    warm_up = max(min(500, n_step // 10), 1)
    progress = tqdm(range(start, n_step), "vae", n_step, initial=start, disable=None)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / n_step)))
        rows = torch.randint(len(data.maps), (batch_size,), generator=generator)
        turn = turns[torch.randint(len(turns), (), generator=generator)]
        gram = grams[torch.randint(len(grams), (), generator=generator)]
        target, log_flux = data.total(rows)
        target = target @ turn
        mean, log_variance = encoder(target, log_flux - sky_sigma.log())
        noise = torch.randn(mean.shape, generator=generator)
        maps, mix = decoder.centred(mean + (0.5 * log_variance).exp() * noise)
        chi2 = coefficient_chi2(mix.mT @ maps, target, log_flux, gram, sky_sigma)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        weight = bright_weight[rows]
        loss = (0.5 * chi2 * weight + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 20.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        for a, p in zip(average, parameters, strict=True):
            a.lerp_(p.detach(), 1 - decay)
        if step % 200 == 0:
            history.append({"step": step, "chi2": chi2.median().item(), "kl": kl.mean().item(), "loss": loss.item()})
            progress.set_postfix(chi2=f"{history[-1]['chi2']:.2f}", kl=f"{history[-1]['kl']:.2f}")
        if on_checkpoint is not None and (step + 1) % checkpoint_every == 0:
            on_checkpoint({"step": step + 1, "parameters": [p.detach().clone() for p in parameters],
                           "average": average, "optimizer": optimizer.state_dict(),
                           "generator": generator.get_state(), "history": history})
    for a, p in zip(average, parameters, strict=True):
        p.data.copy_(a)
    return history


@torch.no_grad()
def posterior(encoder: GalaxyEncoder, data: TrainingSet, sky_sigma: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of q(z | galaxy) for every galaxy, float (n, n_shape) each."""
    means, sigmas = [], []
    for rows in torch.arange(len(data.maps)).split(chunk):
        target, log_flux = data.total(rows)
        mean, log_variance = encoder(target, log_flux - sky_sigma.log())
        means.append(mean)
        sigmas.append((0.5 * log_variance).exp())
    return torch.cat(means), torch.cat(sigmas)


def fit_shapes(decoder: Decoder, start: Tensor, target: Tensor, log_flux: Tensor, gram: Tensor, sky_sigma: Tensor,
               n_iteration: int = 12, prior_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Best shape latents of noiseless galaxies under the N(0, 1) prior, by damped Gauss-Newton on coefficients.

    With them the decoder's error is told apart from the encoder's.

    Parameters
    ----------
    decoder : Decoder
    start : Tensor, float (n, n_shape)
    target : Tensor, float (n, n_band, n_basis)
    log_flux : Tensor, float (n, n_band)
    gram : Tensor, float (n_band, n_basis, n_basis)
    sky_sigma : Tensor, float (n_band,)
    n_iteration : int
    prior_weight : float
        Weight of the prior. With a small weight, the misfit that remains is the decoder's.

    Returns
    -------
    shape : Tensor, float (n, n_shape)
    chi2 : Tensor, float (n,)
        `coefficient_chi2` at `shape`.
    """
    def unit(z: Tensor) -> Tensor:
        maps, mix = decoder.centred(z[None])
        return (mix.mT @ maps)[0]

    weight = (2 * (log_flux - sky_sigma.log())).exp()[:, :, None]
    shape, damping = start.clone(), torch.full((len(start), 1), 1e-3)

    def objective(z: Tensor) -> tuple[Tensor, Tensor]:
        maps, mix = decoder.centred(z)
        chi2 = coefficient_chi2(mix.mT @ maps, target, log_flux, gram, sky_sigma)
        return chi2 + prior_weight * (z * z).sum(1), chi2

    best, chi2 = objective(shape)
    eye = prior_weight * torch.eye(shape.shape[1])
    for _ in range(n_iteration):
        jacobian = torch.func.vmap(torch.func.jacfwd(unit))(shape)  # (n, band, basis, shape)
        maps, mix = decoder.centred(shape)
        weighted = torch.einsum("bkl,nbls->nbks", gram, jacobian) * weight[..., None]
        gradient = torch.einsum("nbks,nbk->ns", weighted, mix.mT @ maps - target) + prior_weight * shape
        hessian = torch.einsum("nbks,nbkt->nst", weighted, jacobian) + eye
        hessian = hessian + damping[:, :, None] * torch.diag_embed(hessian.diagonal(dim1=1, dim2=2))
        trial = shape - torch.linalg.solve(hessian, gradient)
        value, trial_chi2 = objective(trial)
        better = value < best
        shape = torch.where(better[:, None], trial, shape)
        best, chi2 = torch.where(better, value, best), torch.where(better, trial_chi2, chi2)
        damping = torch.where(better[:, None], damping * 0.2, damping * 8)
    return shape, chi2
