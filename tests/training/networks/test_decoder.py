"""The decoder: fluxes, the bound of its latents, shifts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from toy_model import gauss_hermite  # noqa: E402

from deblendrt.training.networks.decoder import Decoder, bound  # noqa: E402


@pytest.fixture
def decoder() -> Decoder:
    """A float64 decoder far from its initial weights, on a basis whose shifts are known."""
    generator = torch.Generator().manual_seed(0)
    phi, shift = gauss_hermite()
    decoder = Decoder(n_shape=4, n_component=2, n_band=3, n_basis=len(phi), hidden=16, n_layer=2, shape_radius=5.0)
    decoder = decoder.double().eval().requires_grad_(False)
    decoder.head.weight.copy_(0.3 * torch.randn(decoder.head.weight.shape, generator=generator, dtype=torch.float64))
    decoder.head.bias.copy_(0.3 * torch.randn(decoder.head.bias.shape, generator=generator, dtype=torch.float64))
    decoder.basis_sum.copy_(torch.tensor(phi.sum((1, 2))))
    mean = torch.zeros(len(phi), dtype=torch.float64)
    mean[0] = 1 / decoder.basis_sum[0]
    decoder.unit_map.copy_(mean.expand_as(decoder.unit_map))
    decoder.map_scale.copy_(0.3 * mean[0] / (1 + torch.arange(len(phi))))
    decoder.shift_x.copy_(torch.tensor(shift[0]))
    decoder.shift_y.copy_(torch.tensor(shift[1]))
    return decoder


def random_shape(n: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn((n, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_maps_hold_the_enclosed_fraction_of_unit_flux(decoder: Decoder) -> None:
    shape = random_shape(50, 2.0)
    maps, mix = decoder.centred(shape)
    out = decoder.head(decoder.trunk(bound(shape, 5.0)))
    enclosed = torch.sigmoid(4 + 4 * out[:, -2:])
    torch.testing.assert_close(maps @ decoder.basis_sum, enclosed, rtol=1e-12, atol=1e-12)
    assert float(enclosed.min()) > 0
    assert float(enclosed.max()) < 1
    torch.testing.assert_close(mix.sum(1), torch.ones(50, 3, dtype=torch.float64))
    assert float(mix.min()) > 0


def test_an_untrained_decoder_is_the_mean_galaxy() -> None:
    decoder = Decoder(n_shape=4, n_component=2, n_band=3, n_basis=15, hidden=16, n_layer=2, shape_radius=5.0)
    decoder.basis_sum.fill_(0.5)
    decoder.unit_map.fill_(2 / 15)
    decoder.map_scale.fill_(1e-3)
    maps, _ = decoder.centred(torch.zeros(1, 4))
    torch.testing.assert_close(maps[0] @ decoder.basis_sum, torch.full((2,), 0.982), rtol=0.02, atol=0)


@pytest.mark.parametrize("radius", [2.5, 6.0])
def test_bound(radius: float) -> None:
    direction = torch.nn.functional.normalize(random_shape(20), dim=1)
    length = torch.cat([torch.linspace(0, 0.9, 10), torch.tensor([1.0, 2.0, 10.0, 1e4])]).double() * radius
    last = torch.zeros(20, dtype=torch.float64)
    for r in length:
        confined = bound(r * direction, radius)
        size = confined.norm(dim=1)
        assert float(size.max()) <= radius * (1 + 1e-12)
        assert bool((size >= last - 1e-12).all())
        torch.testing.assert_close(confined, size[:, None] * direction, rtol=1e-10, atol=1e-12)  # the direction is kept
        if r <= 0.9 * radius:
            assert bool((size >= 0.95 * r).all())
        last = size
    assert bool((last > 0.99 * radius).all())


def test_a_shift_and_back(decoder: Decoder) -> None:
    maps, _ = decoder.centred(random_shape(5))
    zero = torch.zeros(5, 2, dtype=torch.float64)
    torch.testing.assert_close(decoder.shift(maps, zero), maps, rtol=0, atol=0)
    offset = 0.5 * torch.rand((5, 2), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    there = decoder.shift(maps, offset)
    back = decoder.shift(there, -offset)
    scale = float(maps.abs().max())
    assert float((there - maps).abs().max()) > 0.01 * scale
    assert float((back - maps).abs().max()) < 1e-3 * scale  # fifth order, there and back
    exact = torch.stack([m @ torch.linalg.matrix_exp(dx * decoder.shift_x + dy * decoder.shift_y).mT
                         for m, (dx, dy) in zip(maps, offset, strict=True)])
    assert float((there - exact).abs().max()) < 1e-3 * scale


def test_the_slope_of_a_shift_is_its_generator(decoder: Decoder) -> None:
    maps, _ = decoder.centred(random_shape(3))
    slope = torch.func.jacfwd(lambda o: decoder.shift(maps, o.expand(3, 2)))(torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(slope[..., 0], maps @ decoder.shift_x.mT)
    torch.testing.assert_close(slope[..., 1], maps @ decoder.shift_y.mT)


def test_coefficients_are_linear_in_the_flux(decoder: Decoder) -> None:
    latent = torch.cat([torch.randn(4, 3, dtype=torch.float64), 0.3 * torch.randn(4, 2, dtype=torch.float64),
                        random_shape(4)], 1)
    assert latent.shape[1] == decoder.n_latent
    one = decoder.coefficients(latent)
    assert one.shape == (4, 3, 15)
    brighter = latent.clone()
    brighter[:, 1] += torch.log(torch.tensor(3.0, dtype=torch.float64))
    three = decoder.coefficients(brighter)
    torch.testing.assert_close(three[:, 1], 3 * one[:, 1])
    torch.testing.assert_close(three[:, [0, 2]], one[:, [0, 2]], rtol=0, atol=0)
    maps, mix = decoder(latent[:, 5:], latent[:, 3:5])
    expected = torch.einsum("nb,nmb,nmk->nbk", latent[:, :3].exp(), mix, maps)
    torch.testing.assert_close(one, expected)
