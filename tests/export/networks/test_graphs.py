"""The functions of the graphs against torch's derivatives in float64, without an export."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zuko")
pytest.importorskip("onnx")

import dataclasses  # noqa: E402

from deblendrt.engine.model.manifest import GRAPHS  # noqa: E402
from deblendrt.export.networks import decoder_jacobian, graphs  # noqa: E402
from deblendrt.training import config  # noqa: E402
from deblendrt.training.networks.decoder import SHIFT_ORDER, Decoder  # noqa: E402
from deblendrt.training.networks.flow import ShapePrior  # noqa: E402

# Other operations in float64: some hundred roundings of 2e-16.
EXACT = 1e-13


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture
def decoder() -> Decoder:
    """A random decoder. Its generators do not commute, and its weights are far from their initial values."""
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(n_shape=4, n_component=2, n_band=3, n_basis=9, hidden=16, n_layer=2, shape_radius=2.5)
    decoder = decoder.double().eval().requires_grad_(False)
    for tensor in (decoder.head.weight, decoder.head.bias, decoder.shift_x, decoder.shift_y):
        tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    for tensor in (decoder.unit_map, decoder.map_scale, decoder.basis_sum):
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    return decoder


@pytest.fixture
def latent() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn((6, 9), generator=generator, dtype=torch.float64)
    latent[:, 3:5] *= 0.5
    latent[0, 3:5] = 0.0  # no offset
    latent[1, 5:] = 0.0
    latent[2, 5:] *= 4.0  # beyond the bound's radius
    return latent


def test_jacobian_is_the_derivative(decoder: Decoder, latent: torch.Tensor) -> None:
    maps, d_maps, mix, d_mix = decoder_jacobian.DecoderJacobian(decoder)(latent)

    def one(row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, mix = decoder(row[None, 5:], row[None, 3:5])
        return maps[0], mix[0]

    expected_maps, expected_mix = torch.vmap(one)(latent)
    map_slope, mix_slope = torch.vmap(torch.func.jacfwd(one))(latent)
    assert relative(maps, expected_maps) < EXACT
    assert relative(mix, expected_mix) < EXACT
    assert relative(d_maps, map_slope.movedim(-1, 1)[:, 3:]) < EXACT
    assert relative(d_mix, mix_slope.movedim(-1, 1)[:, 5:]) < EXACT
    assert mix_slope[..., 3:5].abs().max() == 0  # the factored form leaves it out


def test_jacobian_comparison_can_fail(decoder: Decoder, latent: torch.Tensor) -> None:
    d_maps = decoder_jacobian.DecoderJacobian(decoder)(latent)[1]
    decoder.shift_x[0, 0] += 1e-6
    assert relative(decoder_jacobian.DecoderJacobian(decoder)(latent)[1], d_maps) > 1e-9


def test_shift_table_is_the_series(decoder: Decoder) -> None:
    table = decoder_jacobian.shift_table(decoder.shift_x, decoder.shift_y)
    assert table.shape == ((SHIFT_ORDER + 1) * (SHIFT_ORDER + 2) // 2, 9, 9)
    maps = torch.randn((1, 2, 9), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    offset = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    weights = torch.tensor([0.4**a * (-0.3) ** b for a, b in decoder_jacobian.SHIFT_POWERS], dtype=torch.float64)
    assert relative(maps @ torch.tensordot(weights, table, 1), decoder.shift(maps, offset)) < EXACT


def test_pullback_is_the_adjoint_of_the_jacobian(decoder: Decoder, latent: torch.Tensor) -> None:
    """<J d_latent, d_coefficients> = <d_latent, J^T d_coefficients>, J from the factored form."""
    generator = torch.Generator().manual_seed(3)
    d_coefficients = torch.randn((6, 3, 9), generator=generator, dtype=torch.float64)
    maps, d_maps, mix, d_mix = decoder_jacobian.DecoderJacobian(decoder)(latent)
    flux = latent[:, :3].exp()
    by_band = flux[:, :, None] * torch.einsum("nmb,nmk->nbk", mix, maps)
    by_flux = torch.diag_embed(by_band.movedim(2, 1)).movedim(1, 3)  # (n, log_flux, band, basis)
    by_rest = flux[:, None, :, None] * torch.einsum("nmb,nsmk->nsbk", mix, d_maps)
    by_rest[:, 2:] += flux[:, None, :, None] * torch.einsum("nsmb,nmk->nsbk", d_mix, maps)
    full = torch.cat([by_flux, by_rest], 1)
    expected = torch.einsum("nlbk,nbk->nl", full, d_coefficients)
    assert relative(graphs.pullback(decoder, latent, d_coefficients), expected) < EXACT


def test_log_prob_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    prior = ShapePrior(n_shape=3, n_band=2, reference=1, n_transform=2, hidden=8).double().eval().requires_grad_(False)
    latent = torch.randn((4, 7), dtype=torch.float64)
    log_prob, gradient = graphs.log_prob_and_gradient(prior, latent)
    step = 1e-5  # error of the central difference: step^2 ~ 1e-10
    for i in range(7):
        shift = torch.zeros(7, dtype=torch.float64)
        shift[i] = step
        slope = (prior(latent + shift) - prior(latent - shift)) / (2 * step)
        torch.testing.assert_close(gradient[:, i], slope, rtol=1e-7, atol=1e-8)
    assert gradient[:, 2:4].abs().max() == 0  # the offset
    assert gradient[:, :2].abs().max() > 0  # the fluxes, through the flow's context
    plain = graphs.unmask(prior)
    assert not any(type(module).__name__ == "MaskedLinear" for module in plain.modules())
    torch.testing.assert_close(plain(latent), log_prob, rtol=0, atol=0)


def test_functions_leave_the_model_alone() -> None:
    from deblendrt.training.checkpoint import random_model

    settings = config.load("smoke.toml")
    basis = dataclasses.replace(settings.basis, n_basis=6, stamp_size=15, core_size=9)
    settings = dataclasses.replace(settings, basis=basis)
    model = random_model(settings, 0)
    before = {key: value.clone() for key, value in model.prior.state_dict().items()}
    assert list(graphs.functions(model)) == list(GRAPHS)
    assert model.decoder.shift_x.dtype == torch.float32
    assert list(before) == list(model.prior.state_dict())
