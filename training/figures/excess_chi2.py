"""Excess chi2: how well basis and decoder can draw a galaxy, apart from noise, flow and solver.

The model's error adds the excess chi2 to the chi2 of all pixels of all bands. It is measured on noiseless galaxies that
training never saw, under the nominal sky noise and PSFs. Three causes are told apart: the truncation of the basis, the
decoder at its best shape latents, and the latents that the prior or the encoder prefers.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deblendrt.engine.compute import folding
from deblendrt.training.checkpoint import TrainedModel
from deblendrt.training.networks import vae
from deblendrt.training.networks.training_set import project_galaxies
from deblendrt.training.simulation import components, population

EXCESS_SEED = 90_113
N_EXCESS = 700
BINS = (17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.3)


def _drawn(model: TrainedModel, galaxies: population.Galaxies,
           i: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Component maps (n_component, n_pixel) of one galaxy under the reference PSF, and fluxes (n_band, n_component)."""
    settings = model.config
    maps = components.component_maps(galaxies, i, settings.basis.stamp_size, settings.survey.pixel_scale,
                                     settings.basis.reference_psf_sigma).astype(np.float64)
    return maps.reshape(len(maps), -1), galaxies[i : i + 1].component_flux[0].T


def truncation(model: TrainedModel, galaxies: population.Galaxies) -> NDArray[np.float64]:
    """Return chi2 of the light that the basis cannot draw, float64 (n,).

    It is computed under the reference PSF, where it is larger than under any wider PSF.
    """
    flat = np.asarray(model.basis, np.float64).reshape(len(model.basis), -1)
    chi2 = np.empty(len(galaxies))
    for i in range(len(galaxies)):
        maps, flux = _drawn(model, galaxies, i)
        rest = flux @ (maps - (maps @ flat.T) @ flat)
        chi2[i] = ((rest / model.sky_sigma[:, None]) ** 2).sum()
    return chi2


def lost_light(model: TrainedModel, galaxies: population.Galaxies) -> dict[str, NDArray[np.float64]]:
    """Fractions of the reference band's flux outside the "stamp" and outside its "core", float64 (n,) each."""
    size, reference = model.config.basis.stamp_size, model.config.survey.reference_index
    core = np.zeros((size, size), bool)
    margin = (size - model.config.basis.core_size) // 2
    core[margin : size - margin, margin : size - margin] = True
    lost = {"stamp": np.empty(len(galaxies)), "core": np.empty(len(galaxies))}
    for i in range(len(galaxies)):
        maps, flux = _drawn(model, galaxies, i)
        share = flux[reference] / flux[reference].sum()
        lost["stamp"][i] = 1 - share @ maps.sum(1)
        lost["core"][i] = 1 - share @ maps[:, core.ravel()].sum(1)
    return lost


def measure(model: TrainedModel, n: int = N_EXCESS) -> dict[str, NDArray[np.float64]]:
    """Magnitudes and excess chi2 of galaxies that are uniform in magnitude, up to each cause, float64 (n,) each."""
    settings = model.config
    uniform = dataclasses.replace(settings.population, magnitude_min=BINS[0], magnitude_max=BINS[-1],
                                  uniform_fraction=1.0)
    galaxies = population.draw(uniform, settings.survey, n, np.random.default_rng([settings.seed, EXCESS_SEED]))
    data = project_galaxies(galaxies, np.asarray(model.basis, np.float32), settings)
    target, log_flux = data.total(torch.arange(n))
    sky = torch.tensor(model.sky_sigma, dtype=torch.float32)
    folded = folding.fold(model.basis, model.nominal_psf, settings.basis.reference_psf_sigma)
    gram = torch.tensor(folded.gram, dtype=torch.float32)
    start, _ = vae.posterior(model.galaxy_encoder, data, sky)
    with torch.no_grad():
        drawn, mix = model.decoder.centred(start)
        encoder = vae.coefficient_chi2(mix.mT @ drawn, target, log_flux, gram, sky)
        _, prior = vae.fit_shapes(model.decoder, start, target, log_flux, gram, sky)
        _, best = vae.fit_shapes(model.decoder, start, target, log_flux, gram, sky, n_iteration=25, prior_weight=0.01)
    cut = truncation(model, galaxies)
    return {"magnitude": galaxies.magnitude, "basis": cut, "basis + decoder": cut + best.numpy(),
            "with the N(0, 1) prior": cut + prior.numpy(), "at the encoder's latents": cut + encoder.numpy()}


def stamp_loss(model: TrainedModel, n: int = 2000) -> dict[str, dict[str, float]]:
    """Light outside stamp and core, for galaxies with the counts of the sky."""
    settings = model.config
    natural = dataclasses.replace(settings.population, magnitude_max=population.GOLD_LIMIT, uniform_fraction=0.0)
    galaxies = population.draw(natural, settings.survey, n, np.random.default_rng([settings.seed, EXCESS_SEED + 1]))
    return {name: {"share_losing_below_0.5%": float((lost < 0.005).mean()), "median": float(np.median(lost)),
                   "90%": float(np.percentile(lost, 90)), "99%": float(np.percentile(lost, 99))}
            for name, lost in lost_light(model, galaxies).items()}


def draw_figure(model: TrainedModel, path: Path) -> dict[str, Any]:
    """Draw the excess chi2 against magnitude. Returns its medians by magnitude, and the light outside stamps."""
    columns = measure(model)
    magnitude = columns.pop("magnitude")
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, values in columns.items():
        axis.semilogy(magnitude, np.maximum(values, 1e-4), ".", ms=3, alpha=0.6, label=name)
    axis.axhline(model.config.vae.n_shape, color="k", lw=0.6, ls=":", label="number of shape latents")
    axis.set(xlabel=f"{model.config.survey.reference_band} magnitude", ylabel="excess chi2, all bands and pixels")
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    medians = {}
    for low, high in itertools.pairwise(BINS):
        inside = (magnitude >= low) & (magnitude < high)
        if inside.any():
            medians[f"{low:g}-{high:g}"] = {name: float(np.median(v[inside])) for name, v in columns.items()}
    return {"median_by_magnitude": medians, "stamp_loss": stamp_loss(model)}
