"""The shape prior: a density that is normalised for any fluxes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zuko")
pytest.importorskip("tqdm")

from deblendrt.training.networks.flow import CONTEXT_LIMIT, ShapePrior, fit_context, train_flow  # noqa: E402

N_BAND = 3


@pytest.fixture
def prior() -> ShapePrior:
    """A prior of two shape latents, with weights far from their initial values."""
    torch.manual_seed(0)
    prior = ShapePrior(n_shape=2, n_band=N_BAND, reference=1, n_transform=3, hidden=16).requires_grad_(False)
    for parameter in prior.parameters():
        parameter.mul_(1.5)
    fit_context(prior, torch.randn(500, N_BAND) + 6)
    return prior


def test_it_integrates_to_one(prior: ShapePrior) -> None:
    axis = torch.linspace(-12, 12, 481)
    grid = torch.cartesian_prod(axis, axis)
    for log_flux in ([6.0, 6.0, 6.0], [3.0, 7.0, 9.0], [30.0, -20.0, 0.0]):
        log_prob = prior.log_prob(grid, torch.tensor([log_flux]).expand(len(grid), -1))
        assert float(log_prob.exp().sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=5e-3)


def test_it_is_the_change_of_variables(prior: ShapePrior) -> None:
    latent = torch.cat([6 + torch.randn(50, N_BAND), torch.randn(50, 2), 1.5 * torch.randn(50, 2)], 1)
    distribution = prior.flow(prior.context(latent[:, :N_BAND]))
    base, log_slope = distribution.transform.call_and_ladj(latent[:, N_BAND + 2 :])
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(base).sum(1)
    torch.testing.assert_close(prior(latent), normal + log_slope)
    torch.testing.assert_close(prior(latent), prior.log_prob(latent[:, N_BAND + 2 :], latent[:, :N_BAND]))
    moved = latent.clone()
    moved[:, N_BAND : N_BAND + 2] += 1  # the prior of the shape does not depend on the position
    torch.testing.assert_close(prior(moved), prior(latent), rtol=0, atol=0)


def test_samples_follow_the_density(prior: ShapePrior) -> None:
    torch.manual_seed(1)
    log_flux = torch.tensor([[5.0, 6.0, 7.0]]).expand(20000, -1)
    sample = prior.sample(log_flux)
    axis = torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(axis, axis)
    weight = prior.log_prob(grid, log_flux[:1].expand(len(grid), -1)).exp()
    weight = weight / weight.sum()
    mean = (weight[:, None] * grid).sum(0)
    spread = (weight[:, None] * (grid - mean) ** 2).sum(0).sqrt()
    assert bool(((sample.mean(0) - mean).abs() < 5 * spread / 20000**0.5).all())
    torch.testing.assert_close(sample.std(0), spread, rtol=0.05, atol=0)


def test_context(prior: ShapePrior) -> None:
    log_flux = torch.tensor([[1.0, 4.0, 9.0]])
    torch.testing.assert_close(prior.raw_context(log_flux), torch.tensor([[-3.0, 4.0, 5.0]]))
    for extreme in (-1e4, -50.0, 50.0, 1e4):
        context = prior.context(torch.tensor([[extreme, 6.0, -extreme]]))
        assert float(context.abs().max()) <= CONTEXT_LIMIT
    shape = torch.randn(10, 2)
    # impossible colours have the prior of the reddest galaxies, not an extrapolation
    far, further = (prior.log_prob(shape, torch.tensor([[c, 6.0, -c]]).expand(10, -1)) for c in (60.0, 6000.0))
    torch.testing.assert_close(far, further)
    assert bool(torch.isfinite(far).all())
    inside = torch.tensor([[6.0, 6.0, 6.0]])
    standard = (prior.raw_context(inside) - prior.context_mean) / prior.context_scale
    torch.testing.assert_close(prior.context(inside), standard, rtol=0.02, atol=0.02)  # hardly changed near the mean


def test_training_learns_what_depends_on_the_flux() -> None:
    torch.manual_seed(0)
    n = 4000
    log_flux = 6 + torch.randn(n, N_BAND)
    mean = torch.stack([0.8 * (log_flux[:, 1] - 6), torch.zeros(n)], 1)
    sigma = torch.full((n, 2), 0.5)
    prior = ShapePrior(n_shape=2, n_band=N_BAND, reference=1, n_transform=2, hidden=16)
    history = train_flow(prior, mean, sigma, log_flux, batch_size=256, n_step=301, learning_rate=5e-3,
                         generator=torch.Generator().manual_seed(0))
    assert len(history) == 4
    truth = 1 + torch.log(torch.tensor(2 * torch.pi)) + 2 * torch.log(torch.tensor(0.5))  # entropy of the posterior
    assert history[-1] < history[0] - 0.3
    assert history[-1] < float(truth) + 0.2
    assert history[-1] > float(truth) - 0.3  # no density is better than the truth by more than noise
    torch.testing.assert_close(prior.context_mean, prior.raw_context(log_flux).mean(0))
