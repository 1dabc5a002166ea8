"""The modes of detail of a bundle: galaxies are fitted, a covariance is learnt, its leading modes are kept."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.training import config
from deblendrt.training.detail import galaxies, learning
from deblendrt.training.networks.vae import symmetries
from deblendrt.training.simulation import survey

log = logging.getLogger("deblendrt.train")

N_FUNCTION = 80  # functions with detail; the others hold less light than noise even in bright galaxies
N_SHARED, N_BAND_MODE = 32, 16
BAND_SHARE = 0.05  # variance of the modes of single bands, relative to the shared ones
SNR = (80.0, 1200.0)  # of the galaxies, all bands together
MEASURED = ("flux_floor", "shared_light_error")  # entries that `systematic_error` reads, beside the configuration


@dataclasses.dataclass(frozen=True)
class Learnt:
    """Modes and how well they describe the galaxies.

    Attributes
    ----------
    shared : float64 (n_shared, n_basis)
    per_band : float64 (n_band_mode, n_basis)
    n_galaxy : int
        Galaxies learnt from.
    evidence : float
        Mean log evidence of a galaxy, relative to a galaxy without detail; of the galaxies learnt from.
    """

    shared: NDArray[np.float64]
    per_band: NDArray[np.float64]
    n_galaxy: int
    evidence: float


def learn_modes(deblender: Deblender, stamps: Path | None, *, n_galaxy: int = 400, scale: float = 1.0,
                seed: int = 1) -> Learnt:
    """Learn the modes of detail of a bundle.

    Parameters
    ----------
    deblender : Deblender
        Its bundle has the population, and the survey whose nominal PSF and depth the galaxies are seen with.
    stamps : Path or None
        Images of real galaxies, a folder or a file: `deblendrt.training.detail.galaxies.read_galaxies`. None: galaxies
        of the training population.
    n_galaxy : int
        Galaxies to draw. Real galaxies are drawn in turn, each time otherwise.
    scale : float
        Factor of the learnt covariance, above 0.
    seed : int

    Returns
    -------
    Learnt

    Raises
    ------
    ValueError
        A number is out of range, or the stamps cannot be read.
    """
    if n_galaxy < 1:
        raise ValueError(f"n_galaxy: expected 1 or more, got {n_galaxy}")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a positive number, got {scale}")
    settings = settings_of(deblender.bundle.training)
    depth = survey.depth(settings.survey)
    psf = survey.nominal_psf(depth)
    rng = np.random.default_rng(seed)
    if stamps is None:
        drawn = galaxies.draw_population(settings, psf, depth, SNR, n_galaxy, rng)
    else:
        drawn = galaxies.draw_real(galaxies.read_galaxies(stamps), settings, psf, depth, SNR, n_galaxy, rng)
    bundle = deblender.bundle
    n = min(N_FUNCTION, bundle.n_basis)
    found = learning.statistics(deblender, *drawn, psf.image, n)
    if not len(found.pull):
        raise ValueError("no galaxy is bright enough for detail")
    turns = symmetries(bundle.full_basis).numpy().astype(np.float64)[:, :n, :n]
    covariance, evidence = learning.learn(found, turns)
    log.info("detail: %d galaxies, log evidence of a galaxy +%.1f", len(found.pull), evidence)
    gram = deblender.fold(None).gram[:, :n, :n].mean(0, dtype=np.float64)
    shared = learning.leading_modes(scale * covariance, gram, min(N_SHARED, n), bundle.n_basis)
    per_band = np.sqrt(BAND_SHARE) * shared[:N_BAND_MODE]
    return Learnt(shared, per_band, len(found.pull), evidence)


def settings_of(training: dict[str, Any]) -> config.Config:
    """Return the configuration in a bundle's manifest, without the population's description and calibrated errors."""
    fields = {field.name for field in dataclasses.fields(config.Population)}
    population = {key: value for key, value in training["population"].items() if key in fields}
    stored = {key: value for key, value in training.items() if key not in MEASURED}
    return config.from_dict(stored | {"population": population}, "the bundle's training")
