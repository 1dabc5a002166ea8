r"""The galaxy decoder: shape latents to basis coefficients in the PSF-free frame.

    maps[m]  = exp(dx X + dy Y) enclosed[m] (a[m] + (1 - s . a[m]) u[m]),    a, enclosed, mix = MLP(bound(z))
    c[b]     = exp(log_flux[b]) * sum_m mix[m, b] * maps[m]

- z are the shape latents, a[m] the network's coefficients of component m.
- u[m] is the mean component, scaled to unit flux, and s the sum over pixels of each basis function. As s . u = 1, the
  bracket has unit flux inside the stamp for any a.
- enclosed[m] in (0, 1) is the fraction of the component's flux inside the stamp, so exp(log_flux) is the total flux.
- mix[., b] is a softmax over components.

A decoder that divided a by its flux had poles: where no galaxy of a shape has a component, the component's flux is
free, and may be zero.

X and Y are the generators of a shift, X[k, l] = <phi_k, -d phi_l / dx>: the coefficients c of a centred galaxy become
exp(dx X + dy Y) c when its centre moves by (dx, dy) pixels. Under the reference PSF and for offsets below 0.75 pixel,
the fifth-order Taylor series of the exponential is exact to the truncation error of the basis. So the network need not
learn positions, and derivatives with respect to them are analytic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHIFT_ORDER = 5  # Taylor order of the shift: orders 5 and 7 differ by less than the truncation error at |offset| < 0.75


def bound(shape: Tensor, radius: float) -> Tensor:
    """Shape latents confined smoothly to a ball of a radius.

    Inside 0.9 `radius`, where the prior's galaxies are, the function is the identity to 5%. Without the bound, a source
    beside unmodelled flux could run to latents where the decoder was never trained.

    Parameters
    ----------
    shape : Tensor, float (n_source, n_shape)
    radius : float

    Returns
    -------
    Tensor, float (n_source, n_shape)
    """
    relative = (shape * shape).sum(-1, keepdim=True) / radius**2
    return shape * (1.0 + relative**4) ** (-0.125)


class Decoder(nn.Module):
    """Network and shift: from shape and offset to component maps of unit flux and their mix per band.

    Parameters
    ----------
    n_shape, n_component, n_band, n_basis : int
    hidden, n_layer : int
        Width and number of hidden layers of the MLP (SiLU).
    shape_radius : float
        Radius of `bound`.

    Attributes
    ----------
    unit_map : Tensor, float (n_component, n_basis)
        Mean coefficients of the components on the training set, scaled to unit flux inside the stamp.
    map_scale : Tensor, float (n_basis,)
        Standard deviation of the coefficients, so that the network's outputs are of order one.
    basis_sum : Tensor, float (n_basis,)
        Sum over pixels of each basis function.
    shift_x, shift_y : Tensor, float (n_basis, n_basis)
        Generators of a shift by one pixel.
    """

    unit_map: Tensor
    map_scale: Tensor
    basis_sum: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def __init__(self, *, n_shape: int, n_component: int, n_band: int, n_basis: int, hidden: int, n_layer: int,
                 shape_radius: float) -> None:
        super().__init__()
        self.n_shape, self.n_component, self.n_band, self.n_basis = n_shape, n_component, n_band, n_basis
        self.hidden, self.n_layer, self.shape_radius = hidden, n_layer, float(shape_radius)
        layers: list[nn.Module] = []
        width = n_shape
        for _ in range(n_layer):
            layers += [nn.Linear(width, hidden), nn.SiLU()]
            width = hidden
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, n_component * (n_basis + n_band + 1))
        nn.init.normal_(self.head.weight, std=0.1 / hidden**0.5)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("unit_map", torch.zeros(n_component, n_basis))
        self.register_buffer("map_scale", torch.ones(n_basis))
        self.register_buffer("basis_sum", torch.ones(n_basis))
        self.register_buffer("shift_x", torch.zeros(n_basis, n_basis))
        self.register_buffer("shift_y", torch.zeros(n_basis, n_basis))

    @property
    def n_latent(self) -> int:
        """Length of a source's latent vector, [log_flux, offset_x, offset_y, shape]."""
        return self.n_band + 2 + self.n_shape

    def centred(self, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Return component maps at zero offset, and their mix.

        Parameters
        ----------
        shape : Tensor, float (n_source, n_shape)

        Returns
        -------
        maps : Tensor, float (n_source, n_component, n_basis)
        mix : Tensor, float (n_source, n_component, n_band)
            Sums to one over components.
        """
        n_map, n_mix = self.n_component * self.n_basis, self.n_component * self.n_band
        out = self.head(self.trunk(bound(shape, self.shape_radius)))
        raw = out[:, :n_map].reshape(-1, self.n_component, self.n_basis) * self.map_scale
        mix = out[:, n_map : n_map + n_mix].reshape(-1, self.n_component, self.n_band).softmax(1)
        enclosed = torch.sigmoid(4.0 + 4.0 * out[:, n_map + n_mix :])  # starts at 0.98
        flux = (raw * self.basis_sum).sum(-1)
        return enclosed[:, :, None] * (raw + (1.0 - flux)[:, :, None] * self.unit_map), mix

    def shift(self, maps: Tensor, offset: Tensor) -> Tensor:
        """Maps moved by a sub-pixel offset: the Taylor series of exp(dx X + dy Y).

        Parameters
        ----------
        maps : Tensor, float (n_source, n_component, n_basis)
        offset : Tensor, float (n_source, 2) [pixel]
            (x, y).

        Returns
        -------
        Tensor, float (n_source, n_component, n_basis)
        """
        dx, dy = offset[:, 0, None, None], offset[:, 1, None, None]
        term = maps
        moved = maps
        for order in range(1, SHIFT_ORDER + 1):
            term = (dx * (term @ self.shift_x.mT) + dy * (term @ self.shift_y.mT)) * (1.0 / order)
            moved = moved + term
        return moved

    def forward(self, shape: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return component maps at the offset, and their mix.

        Parameters
        ----------
        shape : Tensor, float (n_source, n_shape)
        offset : Tensor, float (n_source, 2) [pixel]

        Returns
        -------
        maps : Tensor, float (n_source, n_component, n_basis)
        mix : Tensor, float (n_source, n_component, n_band)
        """
        maps, mix = self.centred(shape)
        return self.shift(maps, offset), mix

    def coefficients(self, latent: Tensor) -> Tensor:
        """Return basis coefficients in every band.

        Parameters
        ----------
        latent : Tensor, float (n_source, n_latent)
            [log_flux per band (ln nJy), offset_x, offset_y (pixel), shape].

        Returns
        -------
        Tensor, float (n_source, n_band, n_basis) [nJy]
        """
        log_flux, offset, shape = latent.tensor_split((self.n_band, self.n_band + 2), 1)
        maps, mix = self(shape, offset)
        return log_flux.exp()[:, :, None] * (mix.mT @ maps)
