"""The MADNESS method in PyTorch: decoder, prior and descent (Biswas et al., A&A 700, A129, 2025; arXiv 2408.15236).

All sources of a scene descend together to the maximum a posteriori solution in the latent space of a variational
autoencoder (the paper's objective)::

    L(z) = sum_{b,p} (y - m)^2 / (2 sigma^2)  -  sum_i log p(z_i),      m = sum_i decoder(z_i), each at its position

The code is our own, after two sources:

- *the paper*: stamps of 45 x 45 pixels in 6 bands; 16 latents; a dense layer of 512; transposed convolutions with 128,
  96 and 64 filters, kernel 5, stride 2, cropped to the stamp; a prior of 6 masked autoregressive layers (Papamakarios,
  Pavlakou, Murray 2017, arXiv 1705.07057); Adam, rate 0.075, times 0.8 every 30 steps; 200 iterations.
- *the authors' package* (``madness-deblender`` 1.0.0, PyPI), for the choices that the paper leaves open: PReLU between
  the layers; a second dense layer of 6 x 6 x 128; a last transposed convolution, kernel 3, to the bands, then ReLU; 1
  row and column cut before and 2 after; each autoregressive layer of two hidden layers of 32, tanh, followed by a
  turn of the latents by 3; positions rounded to pixels.

Guesses and departures, which hardly change the time: one PReLU slope a channel (Keras has one a pixel); the descent
starts at z = 0 (the authors': at the mean of an encoder, one pass of about half a decoder's multiply-adds); the unit of
the images; single precision without compilation. The authors may stop before 200 iterations, once the objective stops
falling; here all 200 are done.

The package has no trained weights, and this file trains none. With random weights only the time is meaningful.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STAMP, HALF = 45, 22  # pixel
N_BAND, N_LATENT, N_DENSE = 6, 16, 512
FILTERS, KERNEL = (128, 96, 64), 5
START = 6  # pixel: side of the first feature maps; three doublings give 48
N_LAYER, N_HIDDEN, TURN = 6, 32, 3
RATE, RATE_FACTOR, RATE_STEPS, N_ITERATION = 0.075, 0.8, 30, 200


class MadnessDecoder(nn.Sequential):
    """float32 (n_source, N_LATENT) to float32 (n_source, N_BAND, STAMP, STAMP), not negative."""

    def __init__(self) -> None:
        first = FILTERS[0]
        layers = [nn.Linear(N_LATENT, N_DENSE), nn.PReLU(), nn.Linear(N_DENSE, START**2 * first), nn.PReLU(),
                  nn.Unflatten(1, (first, START, START))]
        for n_in, n_out in zip((first, *FILTERS), FILTERS, strict=False):
            layers += [nn.ConvTranspose2d(n_in, n_out, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1),
                       nn.PReLU(n_out)]
        super().__init__(*layers, nn.ConvTranspose2d(FILTERS[-1], N_BAND, 3, padding=1), nn.ReLU())

    def forward(self, z: Tensor) -> Tensor:
        """Stamps of the latents."""
        return super().forward(z)[..., 1 : 1 + STAMP, 1 : 1 + STAMP]


class MaskedLinear(nn.Linear):
    """A linear layer whose output k depends on inputs of a lower degree; with `same` also on those of its degree.

    Parameters
    ----------
    degree_in, degree_out : int64 (n_in,), (n_out,)
    same : bool
    """

    def __init__(self, degree_in: Tensor, degree_out: Tensor, *, same: bool) -> None:
        super().__init__(len(degree_in), len(degree_out))
        mask = degree_out[:, None] >= degree_in if same else degree_out[:, None] > degree_in
        self.register_buffer("mask", mask.to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The masked product, and the bias."""
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class AutoregressiveLayer(nn.Module):
    """u_i = (z_i - shift_i) exp(-log_scale_i), where shift_i and log_scale_i are functions of z_1 .. z_(i-1)."""

    def __init__(self) -> None:
        super().__init__()
        degree = torch.arange(1, N_LATENT + 1)
        hidden = 1 + torch.arange(N_HIDDEN) % (N_LATENT - 1)
        self.network = nn.Sequential(
            MaskedLinear(degree, hidden, same=True), nn.Tanh(), MaskedLinear(hidden, hidden, same=True), nn.Tanh(),
            MaskedLinear(hidden, degree.repeat(2), same=False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, N_LATENT), and log |det du/dz| (n,)."""
        shift, log_scale = self.network(z).chunk(2, -1)
        return (z - shift) * torch.exp(-log_scale), -log_scale.sum(-1)


class MadnessFlow(nn.Module):
    """The prior of a source's latents: masked autoregressive layers down to a standard normal."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AutoregressiveLayer() for _ in range(N_LAYER))

    def to_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The standard normal variables (n, N_LATENT) of z, and log |det| of the transformation (n,)."""
        log_det = z.new_zeros(len(z))
        for layer in self.layers:
            z, of_layer = layer(z)
            z, log_det = z.roll(TURN, -1), log_det + of_layer
        return z, log_det

    def log_prob(self, z: Tensor) -> Tensor:
        """log p (n,) of z (n, N_LATENT)."""
        u, log_det = self.to_normal(z)
        return log_det - 0.5 * (u**2).sum(-1) - 0.5 * N_LATENT * math.log(2 * math.pi)


class PaddedScene:
    """A scene with its sources. Stamps may reach over the edge of the image, which is padded.

    Parameters
    ----------
    image, inverse_variance : float32 (N_BAND, n_y, n_x)
        In the decoder's unit.
    centers : float64 (n_source, 2) [pixel]
        (x, y).
    """

    def __init__(self, image: Tensor, inverse_variance: Tensor, centers: Tensor) -> None:
        n_y, n_x = image.shape[1:]
        width = n_x + 2 * HALF
        limit = torch.tensor([n_x, n_y]) - 1
        x, y = torch.minimum(centers.round().long().clamp(min=0), limit).T[..., None, None]
        step = torch.arange(STAMP)
        self.pixels = ((y + step[:, None]) * width + x + step).flatten(1)  # indices in the image with its border
        self.image, self.inverse_variance = (
            nn.functional.pad(array, (HALF, HALF, HALF, HALF)).flatten(1) for array in (image, inverse_variance))

    def objective(self, stamps: Tensor, log_prob: Tensor) -> Tensor:
        """L of the module's docstring, from stamps (n_source, N_BAND, STAMP, STAMP) and log p (n_source,)."""
        model = torch.zeros_like(self.image).index_add(1, self.pixels.flatten(), stamps.transpose(0, 1).flatten(1))
        return 0.5 * (self.inverse_variance * (self.image - model) ** 2).sum() - log_prob.sum()


def descend(scene: PaddedScene, decoder: MadnessDecoder, flow: MadnessFlow,
            n_iteration: int = N_ITERATION) -> tuple[Tensor, Tensor]:
    """The published descent.

    Parameters
    ----------
    scene : PaddedScene
    decoder, flow
        Networks whose weights are fixed and need no gradient.
    n_iteration : int

    Returns
    -------
    z : float32 (n_source, N_LATENT)
    objective : float32 (n_iteration,)
        Before each iteration.
    """
    z = torch.zeros(len(scene.pixels), N_LATENT, requires_grad=True)
    adam = torch.optim.Adam([z], lr=RATE)
    rate = torch.optim.lr_scheduler.StepLR(adam, RATE_STEPS, RATE_FACTOR)
    objective = torch.zeros(n_iteration)
    for k in range(n_iteration):
        adam.zero_grad()
        loss = scene.objective(decoder(z), flow.log_prob(z))
        loss.backward()
        adam.step()
        rate.step()
        objective[k] = loss.detach()
    return z.detach(), objective
