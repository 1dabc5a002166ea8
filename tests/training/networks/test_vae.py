"""The VAE on a toy training set: its loss falls, a resumed run gives the same result, the misfit is a chi2."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")

from toy_model import STAMP, gauss_hermite  # noqa: E402

from deblendrt.training.networks import vae  # noqa: E402
from deblendrt.training.networks.decoder import Decoder  # noqa: E402
from deblendrt.training.networks.training_set import TrainingSet  # noqa: E402

N_GALAXY, N_BAND = 300, 3
SKY = torch.tensor([1.0, 1.5, 2.0])
PHI, SHIFT = gauss_hermite()


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    """Elliptical Gaussians of two sizes, in the span of the basis."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:STAMP, :STAMP] - STAMP // 2
    maps = np.empty((N_GALAXY, 2, len(PHI)), np.float32)
    for i in range(N_GALAXY):
        angle, q = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        for m, sigma in enumerate((1.5, 2.2)):
            sigma = sigma * rng.uniform(0.9, 1.1)
            image = np.exp(-(along**2 / q + across**2 * q) / (2 * sigma**2))
            maps[i, m] = np.tensordot(PHI, image / image.sum(), 2)
    share = rng.uniform(0.1, 0.9, (N_GALAXY, 1, 1))
    flux = rng.uniform(100, 3000, (N_GALAXY, 1, 1)) * np.concatenate([share, 1 - share], 1) * rng.uniform(
        0.5, 1.5, (N_GALAXY, 2, N_BAND))
    return TrainingSet(torch.from_numpy(maps), torch.tensor(flux, dtype=torch.float32))


@pytest.fixture(scope="module")
def grams() -> Any:
    flat = PHI.reshape(len(PHI), -1)
    gram = flat @ flat.T
    return torch.tensor(np.array([[gram] * N_BAND, [0.9 * gram] * N_BAND]), dtype=torch.float32)


def new_networks(data: TrainingSet, seed: int = 0) -> tuple[Decoder, vae.GalaxyEncoder]:
    torch.manual_seed(seed)
    decoder = Decoder(n_shape=3, n_component=2, n_band=N_BAND, n_basis=len(PHI), hidden=24, n_layer=2, shape_radius=5.0)
    encoder = vae.GalaxyEncoder(n_shape=3, n_band=N_BAND, n_basis=len(PHI), hidden=24, reference=1)
    vae.initialise(decoder, encoder, data, PHI, SHIFT)
    return decoder, encoder


def train(networks: tuple[Decoder, vae.GalaxyEncoder], data: TrainingSet, grams: Any, n_step: int,
          **options: Any) -> list[dict[str, float]]:
    return vae.train_vae(*networks, data, phi=PHI, grams=grams, sky_sigma=SKY, batch_size=64, n_step=n_step,
                         learning_rate=5e-3, model_error=0.002, generator=torch.Generator().manual_seed(3), **options)


def median_chi2(networks: tuple[Decoder, vae.GalaxyEncoder], data: TrainingSet, grams: Any) -> float:
    decoder, encoder = networks
    with torch.no_grad():
        target, log_flux = data.total(torch.arange(N_GALAXY))
        mean, _ = encoder(target, log_flux - SKY.log())
        maps, mix = decoder.centred(mean)
        return float(vae.coefficient_chi2(mix.mT @ maps, target, log_flux, grams[0], SKY).median())


def test_the_start_is_the_mean_galaxy(data: TrainingSet) -> None:
    decoder, _ = new_networks(data)
    torch.testing.assert_close(decoder.unit_map @ decoder.basis_sum, torch.ones(2), rtol=1e-5, atol=0)
    maps, _ = decoder.centred(torch.zeros(1, 3))
    relative = (maps[0] - data.maps.mean(0)).norm(dim=1) / data.maps.mean(0).norm(dim=1)
    assert float(relative.max()) < 0.2


def test_training_lowers_the_misfit(data: TrainingSet, grams: Any) -> None:
    networks = new_networks(data)
    before = median_chi2(networks, data, grams)
    history = train(networks, data, grams, 401)
    after = median_chi2(networks, data, grams)
    assert after < 0.3 * before
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert [row["step"] for row in history] == [0, 200, 400]


def test_a_resumed_run_is_the_same_run(data: TrainingSet, grams: Any) -> None:
    files = []

    def store(state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        files.append(buffer.getvalue())

    whole = new_networks(data)
    history = train(whole, data, grams, 60, on_checkpoint=store, checkpoint_every=25)
    assert len(files) == 2
    for file in files:
        resumed = new_networks(data, seed=9)  # other weights and another generator: the file has all state
        state = torch.load(io.BytesIO(file), weights_only=True)
        again = train(resumed, data, grams, 60, resume=state)
        assert again == history
        for a, b in zip(whole, resumed, strict=True):
            for key, value in a.state_dict().items():
                torch.testing.assert_close(b.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_misfit_is_chi2_over_pixels(data: TrainingSet) -> None:
    target, log_flux = data.total(torch.arange(5))
    other = target.flip(0)
    flat = torch.tensor(PHI.reshape(len(PHI), -1), dtype=torch.float32)
    gram = (flat @ flat.T).expand(N_BAND, -1, -1)
    images = (other - target) @ flat * (log_flux.exp() / SKY)[:, :, None]
    found = vae.coefficient_chi2(other, target, log_flux, gram, SKY)
    torch.testing.assert_close(found, (images**2).sum((1, 2)), rtol=1e-4,
                               atol=1e-3)
    assert float(vae.coefficient_chi2(target, target, log_flux, gram, SKY).abs().max()) == 0


def test_misfit_has_its_gradient(data: TrainingSet) -> None:
    """2 G (d - t) F^2 / s^2, although G multiplies the error only once."""
    target, log_flux = data.total(torch.arange(5))
    other = target.flip(0).requires_grad_()
    flat = torch.tensor(PHI.reshape(len(PHI), -1), dtype=torch.float32)
    gram = (flat @ flat.T).expand(N_BAND, -1, -1)
    (found,) = torch.autograd.grad(vae.coefficient_chi2(other, target, log_flux, gram, SKY).sum(), other)
    weight = (log_flux.exp() / SKY)[:, :, None] ** 2
    expected = 2 * weight * torch.einsum("bkl,nbl->nbk", gram, (other - target).detach())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_squared_snr(data: TrainingSet) -> None:
    flat = torch.tensor(PHI.reshape(len(PHI), -1), dtype=torch.float32)
    gram = (flat @ flat.T).expand(N_BAND, -1, -1)
    unit, log_flux = data.total(torch.arange(len(data.maps)))
    images = unit @ flat * (log_flux.exp() / SKY)[:, :, None]
    torch.testing.assert_close(vae.squared_snr(data, gram, SKY, chunk=7), (images**2).sum((1, 2)), rtol=1e-4, atol=0.0)


def test_total(data: TrainingSet) -> None:
    rows = torch.tensor([4, 0])
    unit, log_flux = data.total(rows)
    flux = data.flux[rows]
    expected = torch.einsum("nmb,nmk->nbk", flux, data.maps[rows])
    torch.testing.assert_close(unit * log_flux.exp()[:, :, None], expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_flux.exp(), flux.sum(1))


def test_symmetries_are_the_group_of_the_square() -> None:
    turns = vae.symmetries(PHI)
    assert turns.shape == (8, len(PHI), len(PHI))
    eye = torch.eye(len(PHI))
    torch.testing.assert_close(turns[0], eye, atol=1e-5, rtol=0)
    for turn in turns:  # the symmetries map this basis to itself
        torch.testing.assert_close(turn @ turn.mT, eye, atol=1e-5, rtol=0)
    distance = torch.cdist(turns.flatten(1), turns.flatten(1))
    assert float((distance + 10 * torch.eye(8)).min()) > 0.5
    for a in turns:
        for b in turns:
            assert float((turns - a @ b).flatten(1).norm(dim=1).min()) < 1e-4
    c = np.random.default_rng(0).standard_normal(len(PHI))
    turned = np.rot90(np.tensordot(c, PHI, 1))
    np.testing.assert_allclose(np.tensordot(c @ turns[2].numpy(), PHI, 1), turned, atol=1e-4)


def test_fit_shapes_lowers_the_misfit(data: TrainingSet, grams: Any) -> None:
    networks = new_networks(data)
    train(networks, data, grams, 200)
    decoder, _ = networks
    target, log_flux = data.total(torch.arange(40))
    start = torch.zeros(40, 3)
    with torch.no_grad():
        maps, mix = decoder.centred(start)
        before = vae.coefficient_chi2(mix.mT @ maps, target, log_flux, grams[0], SKY)
    with torch.no_grad():
        shape, chi2 = vae.fit_shapes(decoder, start, target, log_flux, grams[0], SKY)
        maps, mix = decoder.centred(shape)
        torch.testing.assert_close(vae.coefficient_chi2(mix.mT @ maps, target, log_flux, grams[0], SKY), chi2)
    # chi2 + |z|^2 falls for every galaxy
    assert bool((chi2 + (shape**2).sum(1) <= before + 1e-3).all())
    assert float(chi2.median()) < 0.5 * float(before.median())
    assert not bool(start.any())


def test_posterior_does_not_depend_on_its_chunks(data: TrainingSet) -> None:
    _, encoder = new_networks(data)
    whole, parts = vae.posterior(encoder, data, SKY), vae.posterior(encoder, data, SKY, chunk=64)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    assert bool((whole[1] > 0).all())
