"""Checkpoints: the folder that training writes, and the `TrainedModel` that export and the figures read from it.

A checkpoint holds ``config.json`` and the files of each finished stage. Only tensors and arrays are stored, and nothing
is unpickled (``torch.load(weights_only=True)``, ``numpy.load(allow_pickle=False)``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from deblendrt.engine.files.atomic_write import in_place_of
from deblendrt.engine.model.manifest import PERCENTILES
from deblendrt.training import config as config_module
from deblendrt.training.config import Config
from deblendrt.training.networks.deblending_encoder import DeblendingEncoder
from deblendrt.training.networks.decoder import Decoder
from deblendrt.training.networks.flow import ShapePrior
from deblendrt.training.networks.vae import GalaxyEncoder
from deblendrt.training.simulation import survey


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model. Its modules are in evaluation mode, float32, on the CPU.

    Attributes
    ----------
    config : Config
    decoder : Decoder
    galaxy_encoder : GalaxyEncoder
        The VAE's encoder of isolated noiseless galaxies. Only training and the figures use it.
    prior : ShapePrior
    encoder : DeblendingEncoder
    basis : float32 (n_basis, size, size)
        Orthonormal stamps. Outside the core they are bilinear between cells.
    shift : float32 (2, n_basis, n_basis)
    nominal_psf : float32 (n_band, q, q)
    psf_fwhm : float64 (n_band,) [arcsec]
    sky_sigma : float64 (n_band,) [nJy per pixel]
    start_shape : float64 (n_shape,)
        Mean of the shape latents over the population.
    prior_curvature : float64 (n_shape, n_shape)
        Mean of g g^T, g the gradient of log p with respect to the shape, over the population.
    mean_color, color_sigma : float64 (n_band,)
        Mean and standard deviation of ln(flux / flux in the reference band).
    log_prob_percentiles : dict of str to float
        Percentiles of log p(z) over the population.
    population : dict
        The training population: a description in words, its magnitude limits and reference band.
    """

    config: Config
    decoder: Decoder
    galaxy_encoder: GalaxyEncoder
    prior: ShapePrior
    encoder: DeblendingEncoder
    basis: NDArray[np.floating]
    shift: NDArray[np.floating]
    nominal_psf: NDArray[np.floating]
    psf_fwhm: NDArray[np.floating]
    sky_sigma: NDArray[np.floating]
    start_shape: NDArray[np.floating]
    prior_curvature: NDArray[np.floating]
    mean_color: NDArray[np.floating]
    color_sigma: NDArray[np.floating]
    log_prob_percentiles: dict[str, float]
    population: dict[str, Any]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that appears whole or not at all. `write` gets the open file."""
    with in_place_of(path) as partial, open(partial, "wb") as file:
        write(file)


def save_state(module: torch.nn.Module, path: Path) -> None:
    """Store a module's parameters and buffers."""
    write_atomically(path, lambda f: torch.save(module.state_dict(), f))


def new_modules(config: Config) -> tuple[Decoder, GalaxyEncoder, ShapePrior, DeblendingEncoder]:
    """The four networks of a configuration, untrained."""
    bands, vae = len(config.survey.bands), config.vae
    decoder = Decoder(n_shape=vae.n_shape, n_component=vae.n_component, n_band=bands, n_basis=config.basis.n_basis,
                      hidden=vae.hidden, n_layer=vae.n_layer, shape_radius=vae.shape_radius)
    galaxy_encoder = GalaxyEncoder(n_shape=vae.n_shape, n_band=bands, n_basis=config.basis.n_basis,
                                   hidden=vae.encoder_hidden, reference=config.survey.reference_index)
    prior = ShapePrior(n_shape=vae.n_shape, n_band=bands, reference=config.survey.reference_index,
                       n_transform=config.flow.n_transform, hidden=config.flow.hidden)
    encoder = DeblendingEncoder(n_shape=vae.n_shape, n_band=bands, cutout_size=config.encoder.cutout_size)
    return decoder, galaxy_encoder, prior, encoder


def _population_summary(config: Config) -> dict[str, Any]:
    indices = (" or ".join(f"{n:g}" for n in values)
               for values in (config.population.bulge_sersic, config.population.disk_sersic))
    return {
        "description": "bulge and disk galaxies of Sersic index {} and {}".format(*indices),
        "magnitude_min": config.population.magnitude_min,
        "magnitude_max": config.population.magnitude_max,
        "reference_band": config.survey.reference_band,
    }


def load_config(directory: str | Path) -> Config:
    """Return the configuration of a checkpoint."""
    path = Path(directory) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} is no checkpoint: it has no config.json")
    return config_module.from_dict(json.loads(path.read_text()), str(path))


def load_model(directory: str | Path) -> TrainedModel:
    """Load a finished checkpoint.

    Parameters
    ----------
    directory : str or Path

    Returns
    -------
    TrainedModel

    Raises
    ------
    FileNotFoundError
        The folder is no checkpoint, or a stage is missing; the message names it.
    """
    directory = Path(directory)
    config = load_config(directory)
    modules = new_modules(config)
    for module, name in zip(modules, ("decoder.pt", "galaxy_encoder.pt", "prior.pt", "encoder.pt"), strict=True):
        path = directory / name
        if not path.exists():
            raise FileNotFoundError(f"checkpoint {directory} is not finished: {name} is missing "
                                    f"(deblendrt-train --config ... --out {directory} resumes)")
        module.load_state_dict(torch.load(path, weights_only=True))
    with np.load(directory / "basis.npz", allow_pickle=False) as basis:
        phi, shift = basis["phi"], basis["shift"]
    summary = json.loads((directory / "prior.json").read_text())
    return _assemble(config, modules, phi, shift, summary)


def _assemble(config: Config, modules: tuple[Decoder, GalaxyEncoder, ShapePrior, DeblendingEncoder],
              phi: NDArray[np.floating], shift: NDArray[np.floating], summary: dict[str, Any]) -> TrainedModel:
    for module in modules:
        module.eval().requires_grad_(False)
    depth = survey.depth(config.survey)
    nominal_psf = survey.nominal_psf(depth).image.astype(np.float32)
    return TrainedModel(config, *modules, basis=phi, shift=shift, nominal_psf=nominal_psf, psf_fwhm=depth.psf_fwhm,
                 sky_sigma=depth.sky_sigma,
                 start_shape=np.array(summary["start_shape"]), prior_curvature=np.array(summary["prior_curvature"]),
                 mean_color=np.array(summary["mean_color"]), color_sigma=np.array(summary["color_sigma"]),
                 log_prob_percentiles=summary["log_prob_percentiles"], population=_population_summary(config))


def random_model(config: Config, seed: int) -> TrainedModel:
    """Return a model with random weights, for tests of export and engine.

    Its arrays have the right shapes and no meaning.

    Parameters
    ----------
    config : Config
    seed : int

    Returns
    -------
    TrainedModel
    """
    from deblendrt.training.basis import cut, shift_generators

    rng = np.random.default_rng(seed)
    size, n_basis, bands = config.basis.stamp_size, config.basis.n_basis, len(config.survey.bands)
    y, x = np.mgrid[:size, :size] - size // 2
    envelope = np.exp(-(x**2 + y**2) / (2 * (size / 10) ** 2))
    smooth = np.cumsum(np.cumsum(rng.standard_normal((n_basis, size, size)), 1), 2)
    smooth[0] = 1.0
    cells = cut(config.basis)
    drawn = cells.expand(cells.reduce(smooth * envelope))
    phi = np.linalg.qr(drawn.reshape(n_basis, -1).T)[0].T.reshape(n_basis, size, size)
    phi *= np.sign(phi.sum((1, 2)))[:, None, None]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = new_modules(config)
    decoder = modules[0]
    decoder.basis_sum.copy_(torch.tensor(phi.sum((1, 2))))
    mean = np.zeros(n_basis)
    mean[0] = 1 / phi[0].sum()
    decoder.unit_map.copy_(torch.tensor(mean).expand_as(decoder.unit_map))
    decoder.map_scale.copy_(torch.tensor(0.1 * mean[0] / (1 + np.arange(n_basis))))
    shift = shift_generators(phi)
    decoder.shift_x.copy_(torch.tensor(shift[0]))
    decoder.shift_y.copy_(torch.tensor(shift[1]))
    n_shape = config.vae.n_shape
    summary = {"start_shape": [0.0] * n_shape, "prior_curvature": np.eye(n_shape).tolist(),
               "mean_color": [0.0] * bands, "color_sigma": [1.0] * bands,
               "log_prob_percentiles": {k: -30.0 + i for i, k in enumerate(PERCENTILES)}}
    return _assemble(config, modules, phi.astype(np.float32), shift.astype(np.float32), summary)
