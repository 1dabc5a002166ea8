"""The orthonormal basis of stamps: principal components of component maps under the reference PSF.

The covariance is summed over the eight symmetries of the square, so the basis favours no direction on the sky. No mean
is subtracted, so a coefficient vector is a stamp. Galaxies are drawn with sub-pixel offsets, so the basis draws shifted
stamps too, to within its truncation error. The generators of these shifts are computed here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.model import outskirts
from deblendrt.training import config
from deblendrt.training.config import Config
from deblendrt.training.simulation.components import component_map
from deblendrt.training.simulation.population import Galaxies, draw


@dataclasses.dataclass(frozen=True)
class StampBasis:
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


@dataclasses.dataclass(frozen=True)
class Cells:
    """A stamp cut into single pixels in its core and square cells of `binning` pixels in its outskirts.

    A few per cent of the galaxies need outskirts, and their light is smooth there. Cells make 5929 numbers of the 147 x
    147 pixels of an LSST stamp.

    Attributes
    ----------
    label : int64 (size, size)
        The cell of each pixel.
    area : int64 (n_cell,) [pixel]
    core_size, binning : int [pixel]
    """

    label: NDArray[np.int64]
    area: NDArray[np.int64]
    core_size: int
    binning: int

    def reduce(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Sums over cells / sqrt(area), float32 (n, n_cell): smooth images keep their sum of squares."""
        flat = images.reshape(len(images), -1)
        order = np.argsort(self.label.ravel(), kind="stable")
        start = np.concatenate([[0], np.cumsum(self.area)[:-1]])
        sums = np.add.reduceat(flat[:, order].astype(np.float64), start, axis=1)
        return (sums / np.sqrt(self.area)).astype(np.float32)

    def expand(self, cells: NDArray[np.floating]) -> NDArray[np.float64]:
        """Images (n, size, size) from reduced images: bilinear between the centres of the outskirts' cells."""
        fine = (cells / np.sqrt(self.area))[:, self.label]
        return outskirts.expand(*outskirts.split(fine, self.core_size, self.binning), self.binning)


def cut(spec: config.BasisSettings) -> Cells:
    """Return the cells of the stamps of a basis."""
    size, b = spec.stamp_size, spec.binning
    y, x = np.mgrid[:size, :size]
    inside = np.maximum(np.abs(y - size // 2), np.abs(x - size // 2)) <= spec.core_size // 2
    # pixels have the numbers below size^2, cells have larger numbers
    number = np.where(inside, y * size + x, size * size + (y // b) * size + x // b)
    label = np.unique(number, return_inverse=True)[1].reshape(size, size)
    return Cells(label, np.bincount(label.ravel()), spec.core_size, b)


def symmetrised_covariance(maps: NDArray[np.floating], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of outer products of the reduced maps and of their mirror images and quarter turns.

    Parameters
    ----------
    maps : float (n, n_cell)
    label : int64 (size, size)
        Cell of each pixel.

    Returns
    -------
    float64 (n_cell, n_cell)
    """
    covariance = (maps.T @ maps).astype(np.float64)
    total = np.zeros_like(covariance)
    for turn in range(4):
        for mirror in (1, -1):
            moved = np.empty(len(covariance), np.int64)  # the cell that the symmetry makes of each cell
            moved[label.ravel()] = np.rot90(label, turn)[:, ::mirror].ravel()
            total += covariance[np.ix_(moved, moved)]
    return total


def shift_generators(phi: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return minus the derivative along x and y of each basis function, projected on the basis.

    The derivative is taken in Fourier space on a zero-padded grid. Under the reference PSF (sigma = 1 pixel) the power
    of the basis at the Nyquist frequency is 0.7% of its peak.

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


def orthonormal(phi: NDArray[np.floating]) -> NDArray[np.float64]:
    """The orthonormal functions nearest to nearly orthonormal functions, by Löwdin's symmetric method."""
    flat = phi.reshape(len(phi), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(flat @ flat.T)
    return ((vectors / np.sqrt(values)) @ vectors.T @ flat).reshape(phi.shape)


def structured_shares(galaxies: Galaxies, reference: int, one: NDArray[np.float64],
                      rng: np.random.Generator) -> NDArray[np.float64]:
    """Shares of the components in the basis' images, (n, n_component): the lit one of bulge and disk and, with the
    scatter that their colours may have, all other components."""
    flux = galaxies.component_flux[:, :, reference]
    lit = flux > 0
    drawn = (one * lit[:, :2]).max(1, keepdims=True) > 0
    one = np.where(drawn, one, lit[:, :2].astype(float))
    other = flux[:, 2:] / flux.sum(1, keepdims=True) * np.exp(0.7 * rng.standard_normal(flux[:, 2:].shape))
    shares = np.concatenate([one * np.maximum(1 - other.sum(1, keepdims=True), 0.1), other], 1)
    return shares / shares.sum(1, keepdims=True)


def build_basis(config: Config, rng: np.random.Generator) -> StampBasis:
    """The principal components of the population's galaxies, drawn with random offsets.

    Parameters
    ----------
    config : Config
    rng : numpy.random.Generator

    Returns
    -------
    StampBasis
    """
    from tqdm import tqdm

    spec = config.basis
    galaxies = draw(config.population, config.survey, spec.n_galaxy, rng)
    offsets = rng.uniform(-spec.max_offset, spec.max_offset, (spec.n_galaxy, 2))
    # one of bulge and disk: the bulge with the probability of its share of the light
    bulge = rng.random(spec.n_galaxy) < np.clip(galaxies.bulge_fraction, 0.3, 0.7)
    shares = np.stack([bulge, ~bulge], 1).astype(float)
    if galaxies.structure is not None:
        shares = structured_shares(galaxies, config.survey.reference_index, shares, rng)
    cells = cut(spec)

    def drawn(i: int) -> NDArray[np.float32]:
        parts = [np.float32(share) * component_map(galaxies, i, c, spec.stamp_size, config.survey.pixel_scale,
                                                   spec.reference_psf_sigma, tuple(offsets[i]))
                 for c, share in zip(galaxies.components, shares[i], strict=True) if share]
        return cells.reduce(np.sum(parts, 0)[None])

    maps = np.concatenate([drawn(i) for i in tqdm(range(spec.n_galaxy), "basis", disable=None)])
    values, vectors = np.linalg.eigh(symmetrised_covariance(maps, cells.label))
    explained = np.cumsum(values[::-1]) / values.sum()
    phi = orthonormal(cells.expand(vectors[:, ::-1][:, : spec.n_basis].T))
    phi = phi * np.where(phi.sum((1, 2)) < 0, -1.0, 1.0)[:, None, None]  # an eigenvector's sign is arbitrary
    return StampBasis(phi.astype(np.float32), shift_generators(phi).astype(np.float32), explained[: spec.n_basis])
