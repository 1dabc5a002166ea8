"""The orthonormal basis of stamps: principal components of component maps under the reference PSF.

The covariance is summed over the eight symmetries of the square, so the basis favours no direction on the sky; it is
uncentred, so that a coefficient vector is a stamp. Galaxies are drawn with sub-pixel offsets, so the span is closed
under small shifts to within its truncation error; the generators of those shifts are computed here too.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.training.config import Config
from deblendrt.training.population import draw
from deblendrt.training.render import COMPONENTS, component_map


@dataclasses.dataclass(frozen=True)
class Basis:
    """An orthonormal basis.

    Attributes
    ----------
    phi : float32 (n_basis, size, size)
    shift : float32 (2, n_basis, n_basis)
        Generators of a shift by one pixel along x and y: ``shift[0][k, l] = <phi_k, -d phi_l / dx>``.
    explained : float64 (n_basis,)
        Cumulative share of the sum of squares of the maps.
    """

    phi: NDArray[np.float32]
    shift: NDArray[np.float32]
    explained: NDArray[np.float64]


def symmetrised_covariance(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sum of outer products of the maps and of their mirror images and quarter turns.

    Parameters
    ----------
    maps : float (n, size, size)

    Returns
    -------
    float64 (size^2, size^2)
    """
    n, size, _ = maps.shape
    total = np.zeros((size * size, size * size))
    for turn in range(4):
        for mirror in (False, True):
            turned = np.rot90(maps, turn, (1, 2))
            flat = (turned[:, :, ::-1] if mirror else turned).reshape(n, -1).astype(np.float64)
            total += flat.T @ flat
    return total


def shift_generators(phi: NDArray[np.floating]) -> NDArray[np.float64]:
    """Minus the derivative along x and y of each basis function, projected on the basis.

    The derivative is taken in Fourier space on a zero-padded grid: under the reference PSF (sigma = 1 pixel) the basis
    is band-limited to 0.7% of the peak power at the Nyquist frequency.

    Parameters
    ----------
    phi : float (n_basis, size, size)

    Returns
    -------
    float64 (2, n_basis, n_basis)
    """
    n_basis, size, _ = phi.shape
    grid = 2 * size
    frequency = 2 * np.pi * np.fft.fftfreq(grid)
    frequency[grid // 2] = 0.0  # the derivative of the Nyquist mode is not real
    spectrum = np.fft.fft2(phi.astype(np.float64), s=(grid, grid))
    generators = []
    for wave in (frequency[None, :], frequency[:, None]):
        moved = np.fft.ifft2(spectrum * (-1j * wave)).real[:, :size, :size]
        generators.append(phi.reshape(n_basis, -1).astype(np.float64) @ moved.reshape(n_basis, -1).T)
    return np.array(generators)


def build_basis(config: Config, rng: np.random.Generator) -> Basis:
    """Draw galaxies of the population with random offsets and take their principal components.

    Parameters
    ----------
    config : Config
    rng : numpy.random.Generator

    Returns
    -------
    Basis
    """
    from tqdm import tqdm

    spec = config.basis
    galaxies = draw(config.population, config.survey, spec.n_galaxy, rng)
    offsets = rng.uniform(-spec.max_offset, spec.max_offset, (spec.n_galaxy, 2))
    # a component enters as often as it matters: bulges by their share of the light
    kinds = rng.random(spec.n_galaxy) < np.clip(galaxies.bulge_fraction, 0.3, 0.7)
    maps = np.array([component_map(galaxies, i, COMPONENTS[0 if kinds[i] else 1], spec.stamp_size,
                                   config.survey.pixel_scale, spec.reference_psf_sigma, tuple(offsets[i]))
                     for i in tqdm(range(spec.n_galaxy), "basis", disable=None)])
    values, vectors = np.linalg.eigh(symmetrised_covariance(maps))
    explained = np.cumsum(values[::-1]) / values.sum()
    phi = vectors[:, ::-1][:, : spec.n_basis].T.reshape(-1, spec.stamp_size, spec.stamp_size)
    phi = phi * np.where(phi.sum((1, 2)) < 0, -1.0, 1.0)[:, None, None]  # eigenvectors have no sign of their own
    return Basis(phi.astype(np.float32), shift_generators(phi).astype(np.float32), explained[: spec.n_basis])
