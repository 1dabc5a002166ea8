r"""The decoder's Jacobian in factored form, as a forward computation that exports as one graph.

With maps = E(dx, dy) maps_0(z), E the Taylor series of exp(dx X + dy Y) to SHIFT_ORDER and maps_0, mix the decoder's
outputs at zero offset, the derivatives are

    d maps / d dx = (dE / d dx) maps_0,     d maps / d z_s = E (d maps_0 / d z_s),     d mix / d z_s.

The tangents of the S shape latents pass through the network together (forward mode), as rows of one matrix product per
layer. `torch.func.jvp` under `vmap` gives the same values, but does not trace with a symbolic number of sources. The
tests compare this module with `torch.func.jacfwd`.

E is a polynomial in the offset, E = sum_ab dx^a dy^b P_ab with P_ab from `shift_table`. A matrix E for every source,
applied to the S M tangent maps, costs about 41 K^2 multiply-adds a source. The decoder applies the series map by map,
which would cost 200 K^2 here, more than the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deblendrt.training.networks.decoder import SHIFT_ORDER, Decoder

SHIFT_POWERS = [(order - y, y) for order in range(SHIFT_ORDER + 1) for y in range(order + 1)]  # (a, b) of dx^a dy^b


def shift_table(shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Matrices P_ab of the series sum_ab dx^a dy^b P_ab = sum_n (dx X + dy Y)^n / n!, for maps as row vectors.

    P_ab = (P_{a-1,b} X + P_{a,b-1} Y) / (a + b), which is exact for generators that do not commute.

    Parameters
    ----------
    shift_x, shift_y : Tensor, float (n_basis, n_basis)

    Returns
    -------
    Tensor, float (len(SHIFT_POWERS), n_basis, n_basis)
    """
    none = torch.zeros_like(shift_x)[None]
    levels = [torch.eye(len(shift_x), dtype=shift_x.dtype)[None]]
    for order in range(1, SHIFT_ORDER + 1):
        along_x, along_y = levels[-1] @ shift_x.mT, levels[-1] @ shift_y.mT
        levels.append((torch.cat([along_x, none]) + torch.cat([none, along_y])) * (1.0 / order))
    return torch.cat(levels)


class DecoderJacobian(nn.Module):
    """The decoder with its derivatives: from latents to maps, d_maps, mix and d_mix.

    Parameters
    ----------
    decoder : Decoder
    """

    identity: Tensor
    power: Tensor
    lower: Tensor
    factor: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        dtype = decoder.shift_x.dtype
        self.register_buffer("identity", torch.eye(decoder.n_shape, dtype=dtype))
        power = torch.tensor(SHIFT_POWERS).T.contiguous()
        self.register_buffer("power", power)
        # powers of the derivative, whose factor is 0 where the power is 0
        self.register_buffer("lower", (power - 1).clamp(min=0))
        self.register_buffer("factor", power.to(dtype))

    def bound(self, shape: Tensor) -> tuple[Tensor, Tensor]:
        """`decoder.bound` and its tangents, float (n_source, n_shape) and (n_source, n_shape, n_shape)."""
        relative = (shape * shape).sum(-1, keepdim=True) / self.decoder.shape_radius**2
        cubed = relative * relative * relative
        scale = (1.0 + cubed * relative) ** (-0.125)
        d_scale = shape * (cubed * scale / (1.0 + cubed * relative) * (-1.0 / self.decoder.shape_radius**2))
        return shape * scale, scale[:, :, None] * self.identity + d_scale[:, :, None] * shape[:, None, :]

    def network(self, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the decoder's network and their tangents.

        The scale of the maps and their projection to unit flux are linear. They are multiplied into the last layer, so
        tangents cost nothing more.

        Parameters
        ----------
        shape : Tensor, float (n_source, n_shape)

        Returns
        -------
        out : Tensor, float (n_source, n_component * (n_basis + n_band + 1))
            Maps of unit flux inside the stamp, mix logits, enclosed logits.
        d_out : Tensor, float (n_source, n_shape, n_component * (n_basis + n_band + 1))
        """
        decoder, n_map = self.decoder, self.decoder.n_component * self.decoder.n_basis
        hidden, d_hidden = self.bound(shape)
        for layer in decoder.trunk:
            if isinstance(layer, nn.Linear):
                hidden, d_hidden = layer(hidden), d_hidden @ layer.weight.mT
            else:  # SiLU
                gate = torch.sigmoid(hidden)
                d_hidden = d_hidden * (gate * (1.0 + hidden * (1.0 - gate)))[:, None, :]
                hidden = hidden * gate
        stacked = torch.cat([decoder.head.weight, decoder.head.bias[:, None]], 1)
        raw = stacked[:n_map].reshape(decoder.n_component, decoder.n_basis, -1) * decoder.map_scale[:, None]
        flux = (raw * decoder.basis_sum[:, None]).sum(1, keepdim=True)
        unit = (raw - decoder.unit_map[:, :, None] * flux).reshape(n_map, -1)
        weight = torch.cat([unit[:, :-1], stacked[n_map:, :-1]])
        bias = torch.cat([unit[:, -1] + decoder.unit_map.reshape(-1), stacked[n_map:, -1]])
        return nn.functional.linear(hidden, weight, bias), d_hidden @ weight.mT

    def centred(self, shape: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps at zero offset and mix, each with its tangents; shapes as in `forward`, without the offset's rows."""
        decoder = self.decoder
        n_shape, n_component = decoder.n_shape, decoder.n_component
        sizes = [n_component * decoder.n_basis, n_component * decoder.n_band, n_component]
        out, d_out = self.network(shape)
        unit, logit, enclosed_logit = out.split(sizes, 1)
        d_unit, d_logit, d_enclosed = d_out.split(sizes, 2)
        unit = unit.reshape(-1, n_component, decoder.n_basis)
        d_unit = d_unit.reshape(-1, n_shape, n_component, decoder.n_basis)
        mix = logit.reshape(-1, n_component, decoder.n_band).softmax(1)
        d_logit = d_logit.reshape(-1, n_shape, n_component, decoder.n_band)
        # a mean of differences, because d_logit minus its mean cancels where one component has all the light
        difference = d_logit[:, :, :, None] - d_logit[:, :, None]
        d_mix = mix[:, None] * (difference * mix[:, None, None]).sum(3)
        enclosed = torch.sigmoid(4.0 + 4.0 * enclosed_logit)
        d_scale = (4.0 * enclosed * (1.0 - enclosed))[:, None] * d_enclosed
        d_maps = d_unit * enclosed[:, None, :, None] + unit[:, None] * d_scale[:, :, :, None]
        return unit * enclosed[:, :, None], d_maps, mix, d_mix

    def monomials(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dx^a dy^b for SHIFT_POWERS and its derivatives by dx and dy, each float (n_source, len(SHIFT_POWERS))."""
        dx, dy = offset[:, :1], offset[:, 1:]
        powers_x, powers_y = [torch.ones_like(dx)], [torch.ones_like(dy)]
        for _ in range(SHIFT_ORDER):
            powers_x.append(powers_x[-1] * dx)
            powers_y.append(powers_y[-1] * dy)
        all_x, all_y = torch.cat(powers_x, 1), torch.cat(powers_y, 1)
        in_x, in_y = all_x.index_select(1, self.power[0]), all_y.index_select(1, self.power[1])
        d_x = all_x.index_select(1, self.lower[0]) * self.factor[0]
        d_y = all_y.index_select(1, self.lower[1]) * self.factor[1]
        return in_x * in_y, d_x * in_y, in_x * d_y

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit-flux maps, mix, and their derivatives by offset and shape.

        Parameters
        ----------
        latent : Tensor, float (n_source, n_latent)

        Returns
        -------
        maps : Tensor, float (n_source, n_component, n_basis)
        d_maps : Tensor, float (n_source, 2 + n_shape, n_component, n_basis)
            Derivatives with respect to offset_x, offset_y, shape.
        mix : Tensor, float (n_source, n_component, n_band)
        d_mix : Tensor, float (n_source, n_shape, n_component, n_band)
            Derivatives with respect to shape.
        """
        decoder = self.decoder
        n_shape, n_component, n_basis = decoder.n_shape, decoder.n_component, decoder.n_basis
        _, offset, shape = latent.tensor_split((decoder.n_band, decoder.n_band + 2), 1)
        maps, d_maps, mix, d_mix = self.centred(shape)
        table = shift_table(decoder.shift_x, decoder.shift_y)
        series = self.monomials(offset)
        # Maps and their offset derivatives: there are few maps, so all P_ab are applied first, then the monomials.
        moved = (maps @ table.movedim(0, 1).reshape(n_basis, -1)).reshape(-1, n_component, len(SHIFT_POWERS), n_basis)
        moved = torch.stack(series, 1)[:, None] @ moved  # (n_source, n_component, 3, n_basis)
        # Shape derivatives: there are many tangent maps, so E is computed first.
        shift = (series[0] @ table.reshape(len(SHIFT_POWERS), -1)).reshape(-1, n_basis, n_basis)
        d_maps = (d_maps.reshape(-1, n_shape * n_component, n_basis) @ shift).reshape(-1, n_shape, n_component, n_basis)
        return moved[:, :, 0], torch.cat([moved[:, :, 1:].movedim(2, 1), d_maps], 1), mix, d_mix
