"""The deblending encoder and the blends that it learns from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zuko")
pytest.importorskip("galsim")
pytest.importorskip("galcheat")

from tolerances import SAMPLE_SIGMA  # noqa: E402
from toy_model import gauss_hermite  # noqa: E402

from deblendrt.engine.compute import folding  # noqa: E402
from deblendrt.training import config  # noqa: E402
from deblendrt.training.networks import encoder_blends  # noqa: E402
from deblendrt.training.networks.deblending_encoder import DeblendingEncoder, encoder_loss  # noqa: E402
from deblendrt.training.networks.training_set import TrainingSet  # noqa: E402
from deblendrt.training.simulation import survey  # noqa: E402

SIZE = 15


@pytest.mark.parametrize("size", [9, 15, 31])
def test_shapes(size: int) -> None:
    torch.manual_seed(0)
    encoder = DeblendingEncoder(n_shape=4, n_band=3, cutout_size=size).requires_grad_(False)
    cutouts, offsets, summary = torch.randn(5, 3, size, size), torch.rand(5, 2) - 0.5, torch.rand(5, 6)
    latent = encoder(cutouts, offsets, summary)
    assert latent.shape == (5, 3 + 2 + 4)
    torch.testing.assert_close(latent[:, 3:5], offsets, rtol=0, atol=0)
    for extreme in (torch.zeros_like(cutouts), -1e4 * torch.ones_like(cutouts), 1e6 * torch.ones_like(cutouts)):
        assert bool(torch.isfinite(encoder(extreme, offsets, summary)).all())
    alone = torch.cat([encoder(cutouts[i : i + 1], offsets[i : i + 1], summary[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, latent)


def test_a_brighter_core_is_a_brighter_start() -> None:
    torch.manual_seed(0)
    encoder = DeblendingEncoder(n_shape=4, n_band=3, cutout_size=SIZE).requires_grad_(False)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    image = torch.tensor(np.exp(-(x**2 + y**2) / 8), dtype=torch.float32)
    start = [encoder((a * image).expand(1, 3, -1, -1), torch.zeros(1, 2), torch.ones(1, 6))[0, 0]
             for a in (10, 100, 1000)]
    assert float(start[0]) < float(start[1]) < float(start[2])
    deeper = encoder((100 * image).expand(1, 3, -1, -1), torch.zeros(1, 2), torch.tensor([[1.0] * 3 + [2.0] * 3]))[0, 0]
    assert float(deeper) > float(start[1])  # the same significance over more noise is more flux


def test_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_flux = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator)
    sigma = torch.full((6, 4), 0.1)
    out = torch.cat([log_flux, torch.randn(6, 2), mean], 1)
    assert float(encoder_loss(out, mean, sigma, log_flux)) == 0
    worse = out.clone()
    worse[0, 0] += 1
    assert float(encoder_loss(worse, mean, sigma, log_flux)) > 0
    huge = out.clone()
    huge[0, 0] += 1e6
    slope = encoder_loss(huge + torch.tensor([1.0]), mean, sigma, log_flux)
    assert bool(torch.isfinite(slope))  # the loss is linear in large errors


def make_blends(brightness: float) -> tuple[encoder_blends.EncoderBlends, TrainingSet, survey.Depth]:
    """Blends of point-like galaxies, the brightest with `brightness` times 300 sky sigmas."""
    settings = config.load("smoke.toml")
    settings = dataclasses.replace(settings, encoder=dataclasses.replace(settings.encoder, cutout_size=SIZE))
    phi, shift = gauss_hermite()
    depth = survey.depth(settings.survey)
    folded = folding.fold(phi, survey.nominal_psf(depth).image)
    rng = np.random.default_rng(0)
    maps = np.zeros((50, 2, len(phi)), np.float32)
    maps[:, :, 0] = 1 / phi[0].sum()
    flux = (brightness * depth.sky_sigma * rng.uniform(10, 300, (50, 2, 1))).astype(np.float32)
    data = TrainingSet(torch.from_numpy(maps), torch.from_numpy(flux))
    made = encoder_blends.make_blends(data, settings, folded, folded.fwhm.astype(np.float32), shift.astype(np.float32),
                                    300, rng)
    return made, data, depth


def test_blends_are_whitened() -> None:
    made, _, depth = make_blends(1e-9)
    assert made.cutouts.shape == (300, 6, SIZE, SIZE)
    assert made.cutouts.dtype == np.float32
    n = made.cutouts[:, 0].size
    assert np.abs(made.cutouts.mean((0, 2, 3))).max() < SAMPLE_SIGMA / np.sqrt(n)
    assert np.abs(made.cutouts.std((0, 2, 3)) - 1).max() < SAMPLE_SIGMA / np.sqrt(2 * n)
    assert np.abs(made.offsets).max() <= 0.5
    assert made.psf_summary.shape == (300, 12)
    np.testing.assert_allclose(made.psf_summary[:, 6:].mean(0), np.log(depth.sky_sigma), atol=0.1)


def test_the_target_is_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded, _, _ = make_blends(1.0)
    monkeypatch.setattr(encoder_blends, "MEAN_NEIGHBOURS", 0.0)
    made, data, _ = make_blends(1.0)
    middle, reach = SIZE // 2, 3
    core = made.cutouts[:, 3, middle - reach : middle + reach + 1, middle - reach : middle + reach + 1].sum((1, 2))
    # undo the whitening by the blend's noise
    core = core * np.exp(made.psf_summary[:, 6 + 3])
    flux = data.flux.sum(1)[torch.from_numpy(made.rows), 3].numpy()
    assert np.corrcoef(core, flux)[0, 1] > 0.97
    mean = made.cutouts[:, 3].mean(0)
    assert np.unravel_index(mean.argmax(), mean.shape) == (middle, middle)
    border = np.ones((SIZE, SIZE), bool)
    border[2:-2, 2:-2] = False
    assert crowded.cutouts[:, 3][:, border].mean() > 5 * abs(made.cutouts[:, 3][:, border].mean())


def test_shift_is_the_decoders() -> None:
    from deblendrt.training.networks.decoder import Decoder

    phi, shift = gauss_hermite()
    decoder = Decoder(n_shape=2, n_component=2, n_band=1, n_basis=len(phi), hidden=4, n_layer=1, shape_radius=5.0)
    decoder.shift_x.copy_(torch.tensor(shift[0]))
    decoder.shift_y.copy_(torch.tensor(shift[1]))
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((5, 2, len(phi))).astype(np.float32)
    offsets = rng.uniform(-0.5, 0.5, (5, 2)).astype(np.float32)
    expected = decoder.shift(torch.from_numpy(maps), torch.from_numpy(offsets)).numpy()
    moved = encoder_blends.shift_coefficients(maps, shift.astype(np.float32), offsets)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)
