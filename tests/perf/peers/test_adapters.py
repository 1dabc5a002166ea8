"""Adapters of `perf.peers` whose packages the tests have: sep, and MADNESS in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from perf import metrics
from perf.peers import exchange


def two_galaxies(separation=14.0, n_band=6):
    """A scene of two round galaxies, and their true fluxes (2, n_band)."""
    rng = np.random.default_rng(3)
    y, x = np.indices((61, 61))
    centers = np.array([[22.3, 30.0], [22.3 + separation, 31.4]])
    shape = np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18) / (18 * np.pi) for a, b in centers])
    flux = np.array([[9000.0], [4000.0]]) * np.linspace(0.5, 1.5, n_band)
    image = np.einsum("sb,syx->byx", flux, shape) + rng.standard_normal((n_band, 61, 61))
    return exchange.GivenScene(tuple("ugrizy"[:n_band]), np.full((n_band, 5, 5), 1 / 25), image.astype(np.float32),
                          np.ones((n_band, 61, 61), np.float32), centers), flux


class TestSep:
    @pytest.fixture
    def adapter(self):
        pytest.importorskip("sep")
        from perf.peers import sep
        return sep

    def test_fluxes_of_separated_galaxies(self, adapter):
        scene, flux = two_galaxies(26.0)
        model = adapter.deblend(scene)
        np.testing.assert_allclose(model.flux, flux, rtol=0.1)  # Kron ellipses miss some light
        np.testing.assert_allclose(model.image.sum((2, 3)), flux, rtol=0.1)

    def test_a_pixel_belongs_to_one_source(self, adapter):
        scene, _ = two_galaxies()
        model = adapter.deblend(scene)
        assert ((model.image != 0).sum(0) <= 1).all()
        np.testing.assert_array_equal(model.image.sum(0)[model.image.any(0)], scene.image[model.image.any(0)])

    def test_a_position_without_a_detection_gets_an_aperture(self, adapter):
        scene, _ = two_galaxies()
        elsewhere = exchange.GivenScene(scene.bands, scene.psf, scene.image, scene.variance, np.array([[10.0, 8.0]]))
        model = adapter.deblend(elsewhere)
        assert np.abs(model.flux).max() < 5 * np.sqrt(np.pi * adapter.APERTURE**2)
        assert np.isfinite(model.flux).all()
        assert model.n_missed == 1

    def test_no_detection_goes_to_two_positions(self, adapter):
        centers, found = np.array([[10.0, 10.0], [11.0, 10.0], [40.0, 40.0]]), np.array([[10.8, 10.0], [60.0, 60.0]])
        assert adapter.match(centers, found).tolist() == [-1, 0, -1]
        assert adapter.match(centers, found[:0]).tolist() == [-1, -1, -1]


class TestMadness:
    @pytest.fixture
    def torch(self):
        torch = pytest.importorskip("torch", reason="the model is written in PyTorch")
        torch.manual_seed(5)
        return torch

    @pytest.fixture
    def model(self, torch):
        from perf.peers import madness_model
        return madness_model

    def test_decoder_is_of_the_published_size(self, torch, model):
        decoder = model.MadnessDecoder()
        stamps = decoder(torch.randn(3, model.N_LATENT))
        assert stamps.shape == (3, 6, 45, 45)
        assert (stamps >= 0).all()
        weights = [tuple(p.shape) for p in decoder.parameters() if p.dim() > 1]
        assert weights == [(512, 16), (6 * 6 * 128, 512), (128, 128, 5, 5), (128, 96, 5, 5), (96, 64, 5, 5),
                           (64, 6, 3, 3)]

    def test_log_prob_is_that_of_the_numeric_jacobian(self, torch, model):
        flow = model.MadnessFlow().double()
        z = torch.randn(4, model.N_LATENT, dtype=torch.float64)
        step = 1e-5
        for one, log_prob in zip(z, flow.log_prob(z), strict=True):
            moved = one + step * torch.cat([torch.eye(16), -torch.eye(16)]).double()
            u = flow.to_normal(moved)[0]
            jacobian = (u[:16] - u[16:]) / (2 * step)
            normal = -0.5 * (flow.to_normal(one[None])[0] ** 2).sum() - 8 * np.log(2 * np.pi)
            torch.testing.assert_close(log_prob, normal + torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-7)

    def test_a_layer_is_autoregressive(self, torch, model):
        layer, z = model.AutoregressiveLayer().double(), torch.randn(model.N_LATENT, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0][0], z)
        assert (jacobian.triu(1) == 0).all()
        assert (jacobian.tril(-1).abs() > 1e-12).sum() > 0.9 * 120  # 16 x 15 / 2 below the diagonal

    def test_objective_places_stamps_at_their_positions(self, torch, model):
        centers = torch.tensor([[3.2, 40.6], [30.0, 20.0]], dtype=torch.float64)
        scene = model.PaddedScene(torch.zeros(6, 50, 60), torch.ones(6, 50, 60), centers)
        stamps = torch.zeros(2, 6, 45, 45)
        stamps[:, :, 22, 22] = torch.tensor([2.0, 3.0])[:, None]
        assert scene.objective(stamps, torch.zeros(2)).item() == 0.5 * 6 * (4 + 9)
        stamps[0, :, 22, 0] = 7.0  # 22 pixels left of x = 3: off the image
        assert scene.objective(stamps, torch.tensor([0.5, 1.0])).item() == 0.5 * 6 * (4 + 9) - 1.5
        image = torch.zeros(6, 50, 60)
        image[:, 41, 3], image[:, 20, 30] = 2.0, 3.0
        stamps[0, :, 22, 0] = 0.0
        assert model.PaddedScene(image, torch.ones_like(image), centers).objective(stamps, torch.zeros(2)).item() == 0

    def test_descent_lowers_the_objective(self, torch, model):
        decoder, flow = model.MadnessDecoder().requires_grad_(False), model.MadnessFlow().requires_grad_(False)
        centers = np.array([[22.0, 22.0], [30.0, 25.0]])
        stamps = decoder(3 * torch.randn(2, model.N_LATENT)).numpy()
        corners = centers.astype(int) - model.HALF
        image = sum(metrics.place(stamp, corner, (61, 61)) for stamp, corner in zip(stamps, corners, strict=True))
        scene = model.PaddedScene(torch.from_numpy(image), torch.full((6, 61, 61), 1e4), torch.from_numpy(centers))
        z, objective = model.descend(scene, decoder, flow, 30)
        assert z.shape == (2, model.N_LATENT)
        assert objective[-1] < 0.9 * objective[0]
        assert torch.isfinite(objective).all()

    def test_adapter_answers(self, torch):
        from perf.peers import madness
        scene, _ = two_galaxies()
        model = madness.deblend(scene, n_iteration=2)
        assert model.flux.shape == (2, 6)
        assert model.image.shape == (2, 6, 61, 61)
        assert (model.seconds > 0).all()
        with pytest.raises(ValueError, match="the decoder has 6 bands, the scene 3"):
            madness.deblend(two_galaxies(n_band=3)[0])
