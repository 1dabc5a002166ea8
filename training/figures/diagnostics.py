"""Figures and numbers of a trained model, which `deblendrt-train` writes at its end.

Every function draws one figure from a `TrainedModel` and a `Sample` of galaxies that training never saw. It returns the
numbers in the figure; `write_all` stores them as ``numbers.json`` beside the figures.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from deblendrt.engine.compute import folding
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.training.checkpoint import TrainedModel
from deblendrt.training.figures import excess_chi2, population_figure
from deblendrt.training.networks import vae
from deblendrt.training.networks.training_set import project_galaxies
from deblendrt.training.simulation import blend_scenes, population, survey

SAMPLE_SEED = 7_202_117
N_SAMPLE = 1500
MAGNITUDES = (19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0)
CORE_DIAMETER = 1.2  # arcsec, diameter of the aperture for colours


@dataclasses.dataclass(frozen=True)
class Sample:
    """Galaxies of the training population that training never saw, and their latents.

    Attributes
    ----------
    galaxies : Galaxies
    target : Tensor, float32 (n, n_band, n_basis)
        True coefficients of unit flux.
    log_flux : Tensor, float32 (n, n_band) [ln nJy]
    shape, shape_sigma : Tensor, float32 (n, n_shape)
        Mean and standard deviation of the VAE's posterior.
    decoded : Tensor, float32 (n, n_band, n_basis)
        Unit flux, at the posterior mean.
    folded : FoldedBasis
        The basis under the nominal PSFs.
    """

    galaxies: population.Galaxies
    target: Tensor
    log_flux: Tensor
    shape: Tensor
    shape_sigma: Tensor
    decoded: Tensor
    folded: FoldedBasis

    @property
    def gram(self) -> Tensor:
        """Gram matrices under the nominal PSFs, float32 (n_band, n_basis, n_basis)."""
        return torch.tensor(self.folded.gram, dtype=torch.float32)


def draw_sample(model: TrainedModel, n: int = N_SAMPLE) -> Sample:
    """Draw a sample with the training's mixture of magnitudes, encoded without noise."""
    settings = model.config
    rng = np.random.default_rng([settings.seed, SAMPLE_SEED])
    galaxies = population.draw(settings.population, settings.survey, n, rng)
    data = project_galaxies(galaxies, np.asarray(model.basis, np.float32), settings)
    target, log_flux = data.total(torch.arange(n))
    shape, sigma = vae.posterior(model.galaxy_encoder, data, _sky_sigma(model))
    folded = folding.fold(model.basis, model.nominal_psf, settings.basis.reference_psf_sigma)
    return Sample(galaxies, target, log_flux, shape, sigma, _decode(model, shape), folded)


def _sky_sigma(model: TrainedModel) -> Tensor:
    return torch.tensor(model.sky_sigma, dtype=torch.float32)


@torch.no_grad()
def _decode(model: TrainedModel, shape: Tensor) -> Tensor:
    maps, mix = model.decoder.centred(shape)
    return mix.mT @ maps


def _images(coefficients: Tensor, folded: FoldedBasis) -> NDArray[np.float32]:
    """Images under the nominal PSFs, float32 (n, n_band, window, window)."""
    flat = np.matmul(coefficients.numpy().transpose(1, 0, 2), folded.phi).transpose(1, 0, 2)
    return flat.reshape(*flat.shape[:2], folded.window, folded.window)


def _channels(n_band: int) -> tuple[int, int, int]:
    """Return the bands for red, green and blue: i, r and g for ugrizy."""
    middle = n_band // 2
    return (min(middle, n_band - 1), max(middle - 1, 0), max(middle - 2, 0))


def _rgb(model: TrainedModel, image: NDArray[np.floating]) -> NDArray[np.float64]:
    """An RGB image on an arcsinh scale in units of the noise (Lupton et al. 2004). The mean galaxy is nearly white."""
    channels = list(_channels(len(image)))
    balance = np.exp(-0.75 * np.asarray(model.mean_color)[channels])
    planes = np.moveaxis(image[channels].astype(np.float64), 0, -1) * balance
    planes /= np.mean(np.asarray(model.sky_sigma)[channels] * balance)
    mean = np.maximum(planes.mean(-1, keepdims=True), 1e-3)
    top = np.arcsinh(max(float(mean.max()), 30.0) / 3.0)
    return np.clip(planes * np.arcsinh(mean / 3.0) / (mean * top), 0.0, 1.0)


def reconstructions(model: TrainedModel, sample: Sample, path: Path) -> dict[str, Any]:
    """Galaxies of several magnitudes: GalSim's images, decoded images, and residuals of every band in sky sigma."""
    bands, scale = model.config.survey.bands, model.config.survey.pixel_scale
    nominal = survey.nominal_psf(survey.depth(model.config.survey), model.nominal_psf.shape[-1])
    figure = Figure(figsize=(1.6 * (len(bands) + 2), 1.65 * len(MAGNITUDES)), layout="compressed")
    axes = figure.subplots(len(MAGNITUDES), len(bands) + 2)
    size, numbers = sample.folded.window, {}
    for row, magnitude in zip(axes, MAGNITUDES, strict=True):
        i = int(np.abs(sample.galaxies.magnitude - magnitude).argmin())
        true = blend_scenes.draw_source(sample.galaxies, i, ((size - 1) / 2,) * 2, nominal, (size, size), scale)
        model_image = _images((sample.decoded * sample.log_flux.exp()[:, :, None])[i : i + 1], sample.folded)[0]
        residual = (true - model_image) / model.sky_sigma[:, None, None]
        row[0].imshow(_rgb(model, true), origin="lower")
        row[1].imshow(_rgb(model, model_image), origin="lower")
        for axis, plane, band in zip(row[2:], residual, bands, strict=True):
            axis.imshow(plane, origin="lower", cmap="RdBu_r", vmin=-2, vmax=2)
            axis.set_title(f"{band}: max {np.abs(plane).max():.1f} sigma", fontsize=7)
        row[0].set_title(f"true, i = {sample.galaxies.magnitude[i]:.2f}", fontsize=7)
        row[1].set_title("decoded", fontsize=7)
        numbers[f"{magnitude:g}"] = {"chi2": float((residual**2).sum()), "max_sigma": float(np.abs(residual).max())}
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=130)
    return numbers


def _flow_samples(model: TrainedModel, sample: Sample) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SAMPLE_SEED)
        return model.prior.sample(sample.log_flux)


def _posterior_draws(sample: Sample) -> Tensor:
    noise = torch.randn(sample.shape.shape, generator=torch.Generator().manual_seed(SAMPLE_SEED))
    return sample.shape + sample.shape_sigma * noise


def latents(model: TrainedModel, sample: Sample, path: Path) -> dict[str, Any]:
    """Shape latents: samples of noiseless galaxies' posteriors, and samples of the flow for the same fluxes."""
    encoded = _posterior_draws(sample).numpy()
    drawn = _flow_samples(model, sample).numpy()
    n_shape = encoded.shape[1]
    figure = Figure(figsize=(1.2 * n_shape + 0.5,) * 2)
    axes = figure.subplots(n_shape, n_shape, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    edges = np.linspace(-4, 4, 41).tolist()
    for i in range(n_shape):
        for j in range(n_shape):
            axis = axes[i, j]
            axis.set_xticks([])
            axis.set_yticks([])
            if j > i:
                axis.set_visible(False)
            elif i == j:
                axis.hist(encoded[:, i], edges, density=True, color="C0", alpha=0.5)
                axis.hist(drawn[:, i], edges, density=True, color="C1", histtype="step")
            else:
                axis.plot(encoded[:, j], encoded[:, i], ",", color="C0", alpha=0.7)
                axis.plot(drawn[:, j], drawn[:, i], ",", color="C1", alpha=0.7)
                axis.set(xlim=(-4, 4), ylim=(-4, 4))
    figure.suptitle("shape latents: galaxies (blue), flow (orange)", y=0.93)
    figure.savefig(path, dpi=110)
    # two samples of 1500 from one distribution have a distance above 0.050 in 5% of the cases
    distance = [population_figure.ks_distance(encoded[:, k], drawn[:, k]) for k in range(n_shape)]
    return {"sigma_of_posterior_means": sample.shape.std(0).tolist(),
            "median_posterior_sigma": sample.shape_sigma.median(0).values.tolist(), "ks_distance_to_flow": distance}


@torch.no_grad()
def log_prob(model: TrainedModel, sample: Sample, path: Path) -> dict[str, Any]:
    """Histograms of log p(shape | fluxes): galaxies, samples of the flow, and the bundle's percentiles."""
    galaxies = model.prior.log_prob(_posterior_draws(sample), sample.log_flux).numpy()
    own = model.prior.log_prob(_flow_samples(model, sample), sample.log_flux).numpy()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    edges = np.linspace(np.percentile(np.r_[galaxies, own], 0.2), max(galaxies.max(), own.max()), 61).tolist()
    axis.hist(galaxies, edges, histtype="step", label="galaxies (draws of the posterior)")
    axis.hist(own, edges, histtype="step", label="samples of the flow")
    for name, value in model.log_prob_percentiles.items():
        axis.axvline(value, color="0.7", lw=0.8)
        axis.text(value, axis.get_ylim()[1], f"{name}%", fontsize=7, rotation=90, va="top", ha="right")
    axis.set(xlabel="log p(z)", ylabel="galaxies")
    axis.legend(loc="upper left")
    figure.savefig(path, dpi=130)
    return {"median_galaxies": float(np.median(galaxies)), "median_flow": float(np.median(own)),
            "fraction_of_galaxies_below_0.1_percentile": float((galaxies < model.log_prob_percentiles["0.1"]).mean())}


def colors(model: TrainedModel, sample: Sample, path: Path) -> dict[str, Any]:
    """True and decoded colour gradients.

    Total fluxes are latents, so total colours are exact, and the decoder must learn the gradients only. The figure
    compares colours in an aperture of 1.2 arcsec under the nominal PSFs, relative to the total colours.
    """
    bands, window = model.config.survey.bands, sample.folded.window
    y, x = np.mgrid[:window, :window] - window // 2
    core = np.hypot(x, y).ravel() <= CORE_DIAMETER / 2 / model.config.survey.pixel_scale
    projection = sample.folded.phi[:, :, core].sum(2)  # (n_band, n_basis)
    true, decoded = ((c.numpy() * projection).sum(2) for c in (sample.target, sample.decoded))
    gradient_in = -2.5 * np.log10(true[:, :-1] / true[:, 1:])
    gradient_out = -2.5 * np.log10(np.maximum(decoded[:, :-1] / decoded[:, 1:], 1e-3))
    figure = Figure(figsize=(3 * (len(bands) - 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(bands) - 1, squeeze=False)[0]
    numbers = {}
    for k, axis in enumerate(axes):
        name = f"{bands[k]}-{bands[k + 1]}"
        error = gradient_out[:, k] - gradient_in[:, k]
        correlation = float(np.corrcoef(gradient_in[:, k], gradient_out[:, k])[0, 1])
        limits = np.percentile(gradient_in[:, k], [0.5, 99.5]) + np.array([-0.02, 0.02])
        axis.plot(gradient_in[:, k], gradient_out[:, k], ".", ms=2, alpha=0.5)
        axis.plot(limits, limits, "k", lw=0.6)
        axis.set(xlim=limits, ylim=limits, xlabel=f"{name} core - total, true [mag]", ylabel="decoded [mag]",
                 title=f"correlation {correlation:.4f}")
        numbers[name] = {"correlation": correlation, "median_abs_error": float(np.median(np.abs(error))),
                         "scatter_in": float(gradient_in[:, k].std())}
    figure.savefig(path, dpi=130)
    return numbers


def generated(model: TrainedModel, sample: Sample, path: Path) -> dict[str, Any]:
    """Noiseless galaxies generated by flow and decoder, beside GalSim's galaxies of the same fluxes."""
    rows, columns = 6, 6
    magnitude = sample.galaxies.magnitude
    bright = np.flatnonzero((magnitude > 20) & (magnitude < 23.5))[: rows * columns]
    shape = _flow_samples(model, sample)[bright]
    flux = sample.log_flux[bright].exp()[:, :, None]
    made = _images(_decode(model, shape) * flux, sample.folded)
    true = _images(sample.target[bright] * flux, sample.folded)
    figure = Figure(figsize=(15, 7.8), layout="constrained")
    panels = ((made, "generated"), (true, "GalSim, same fluxes"))
    for axis, (images, title) in zip(figure.subplots(1, 2), panels, strict=True):
        blank = np.zeros((sample.folded.window, sample.folded.window, 3))
        tiles = [_rgb(model, image) for image in images]
        tiles += [blank] * (rows * columns - len(tiles))
        axis.imshow(np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], 1) for r in range(rows)]))
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=110)
    return {"fraction_of_squares_negative": float((np.minimum(made, 0) ** 2).sum() / (made**2).sum())}


FIGURES = {"reconstructions": reconstructions, "latents": latents, "log_prob": log_prob, "colors": colors,
           "generated": generated}


def write_all(model: TrainedModel, directory: str | Path) -> dict[str, Any]:
    """Write every figure and ``numbers.json`` into a folder.

    Parameters
    ----------
    model : TrainedModel
    directory : str or Path
        Made if absent.

    Returns
    -------
    dict
        The numbers of each figure.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    numbers = {"population": population_figure.draw_figure(model.config, directory / "population.png")}
    numbers["excess_chi2"] = excess_chi2.draw_figure(model, directory / "excess_chi2.png")
    sample = draw_sample(model)
    for name, function in FIGURES.items():
        numbers[name] = function(model, sample, directory / f"{name}.png")
    (directory / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers
