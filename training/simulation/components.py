"""Components of galaxies, of unit flux: GalSim profiles, maps under the reference PSF, coefficients."""

from __future__ import annotations

import multiprocessing

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.training.simulation.population import Galaxies
from deblendrt.training.simulation.structure import knots, modulation

TRUNCATION = 8.0  # half-light radii; the SDSS photo pipeline's convention for de Vaucouleurs profiles
TRUNCATED_SERSIC = 3.0  # smallest index that is truncated: it has 3% of its light beyond, an index of 2 has 0.8%
FINE_SCALE = 0.25  # pixel: modulated disks are sampled so finely, under a Gaussian of 1.5 samples


def galsim_component(galaxies: Galaxies, i: int, component: str, pixel_scale: float = 0.2) -> galsim.GSObject:
    """One component of one galaxy: unit total flux, at its place from the disk's centre, no PSF.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    component : {"bulge", "disk", "bar", "knots", "companion"}
    pixel_scale : float [arcsec]
        Sampling of disks with arms, rings or lopsidedness: a quarter of it.

    Returns
    -------
    galsim.GSObject
    """
    structure = galaxies.structure
    if component == "disk":
        if structure is not None and structure.modulated(i):
            return _modulated_disk(galaxies, i, pixel_scale)
        return _smooth_disk(galaxies, i)
    if component == "bulge":
        angle = galaxies.position_angle[i] if structure is None else structure.bulge_angle[i]
        profile = _sersic(galaxies.bulge_sersic[i], galaxies.bulge_half_light_radius[i], galaxies.bulge_ellipticity[i],
                          angle)
        return profile if structure is None else profile.shift(*structure.bulge_offset[i])
    if structure is None:
        raise ValueError(f"component: expected 'bulge' or 'disk' of galaxies without structure, got {component!r}")
    if component == "knots":
        return galsim.Sum([galsim.Gaussian(sigma=sigma, flux=share).shift(*place)
                           for place, share, sigma in zip(*knots(galaxies, i), strict=True)])
    if component == "bar":
        bar = galsim.Gaussian(half_light_radius=float(structure.bar_radius[i]))
        return bar.shear(g=float(structure.bar_ellipticity[i]), beta=float(structure.bar_angle[i]) * galsim.radians)
    return _sersic(structure.companion_sersic[i], structure.companion_radius[i], structure.companion_ellipticity[i],
                   structure.companion_angle[i]).shift(*structure.companion_offset[i])


def _sersic(index: float, radius: float, ellipticity: float, angle: float) -> galsim.GSObject:
    if index == 1:
        profile = galsim.Exponential(half_light_radius=float(radius))
    else:
        trunc = TRUNCATION * float(radius) if index >= TRUNCATED_SERSIC else 0.0
        profile = galsim.Sersic(float(index), half_light_radius=float(radius), trunc=trunc)
    return profile.shear(g=float(ellipticity), beta=float(angle) * galsim.radians)


def _smooth_disk(galaxies: Galaxies, i: int) -> galsim.GSObject:
    return _sersic(galaxies.disk_sersic[i], galaxies.disk_half_light_radius[i], galaxies.disk_ellipticity[i],
                   galaxies.position_angle[i])


def _modulated_disk(galaxies: Galaxies, i: int, pixel_scale: float) -> galsim.GSObject:
    """A disk with its arms, ring and lopsidedness, interpolated from samples."""
    fine = FINE_SCALE * pixel_scale
    e = galaxies.disk_ellipticity[i]
    reach = 5 * galaxies.disk_half_light_radius[i] * np.sqrt((1 + e) / (1 - e)) + 10 * fine
    size = 2 * int(np.clip(reach / fine, 16, 600)) + 1
    smooth = galsim.Convolve(_smooth_disk(galaxies, i), galsim.Gaussian(sigma=1.5 * fine))
    image: NDArray[np.floating] = smooth.drawImage(nx=size, ny=size, scale=fine, method="no_pixel",
                                                   dtype=np.float64).array
    axis = (np.arange(size, dtype=np.float32) - size // 2) * np.float32(fine)
    image = image * modulation(galaxies, i, axis[None, :], axis[:, None], pixel_scale)
    return galsim.InterpolatedImage(galsim.Image(image / image.sum(), scale=fine), flux=1.0,
                                    x_interpolant=galsim.Quintic())


def component_map(galaxies: Galaxies, i: int, component: str, size: int, pixel_scale: float, psf_sigma: float,
                  offset: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float32]:
    """A component under the Gaussian reference PSF, sampled at pixel centres.

    Arms, rings and lopsidedness multiply the disk's image under the PSF: they are wider than it, see `modulation`.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    component : {"bulge", "disk", "bar", "knots", "companion"}
    size : int [pixel]
    pixel_scale : float [arcsec]
    psf_sigma : float [pixel]
    offset : (float, float) [pixel]
        (x, y) of the disk's centre, from the central pixel's centre.

    Returns
    -------
    float32 (size, size)
        Its sum is the fraction of the flux inside the stamp.
    """
    axis = np.arange(size, dtype=np.float32) - size // 2
    if component == "knots":
        position, share, sigma = knots(galaxies, i)
        center = position / pixel_scale + offset
        variance = ((sigma / pixel_scale) ** 2 + psf_sigma**2)[:, None]
        x, y = (np.exp(-(axis - center[:, k, None]) ** 2 / (2 * variance)) / np.sqrt(2 * np.pi * variance)
                for k in (0, 1))
        return ((share[:, None] * y).T @ x).astype(np.float32)
    structure = galaxies.structure
    disk = component == "disk"
    profile = _smooth_disk(galaxies, i) if disk else galsim_component(galaxies, i, component)
    image: NDArray[np.float32] = galsim.Convolve(profile, galsim.Gaussian(sigma=psf_sigma * pixel_scale)).drawImage(
        nx=size, ny=size, scale=pixel_scale, offset=offset, method="no_pixel", dtype=np.float32).array
    if disk and structure is not None and structure.modulated(i):
        away = [(axis - np.float32(o)) * np.float32(pixel_scale) for o in offset]
        changed = image * modulation(galaxies, i, away[0][None, :], away[1][:, None], pixel_scale)
        image = changed * (image.sum() / changed.sum())
    return image


def component_maps(galaxies: Galaxies, i: int, size: int, pixel_scale: float, psf_sigma: float,
                   offset: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float32]:
    """Maps of all components of a galaxy, float32 (n_component, size, size); 0 for a component without flux."""
    lit = galaxies[i : i + 1].component_flux[0].any(1) if galaxies.structure is not None else (True, True)
    return np.array([component_map(galaxies, i, c, size, pixel_scale, psf_sigma, offset) if there
                     else np.zeros((size, size), np.float32)
                     for c, there in zip(galaxies.components, lit, strict=True)])


def _project(task: tuple[Galaxies, NDArray[np.float32], float, float]) -> NDArray[np.float32]:
    galaxies, basis, pixel_scale, psf_sigma = task
    n_basis, size, _ = basis.shape
    maps = np.array([component_maps(galaxies, i, size, pixel_scale, psf_sigma) for i in range(len(galaxies))])
    return (maps.reshape(-1, size * size) @ basis.reshape(n_basis, -1).T).reshape(*maps.shape[:2], n_basis)


def component_coefficients(galaxies: Galaxies, basis: NDArray[np.float32], pixel_scale: float, psf_sigma: float,
                           n_process: int = 1, chunk: int = 200) -> NDArray[np.float32]:
    """Basis coefficients of every galaxy's components, of unit flux and at zero offset.

    Parameters
    ----------
    galaxies : Galaxies
    basis : float32 (n_basis, size, size)
    pixel_scale : float [arcsec]
    psf_sigma : float [pixel]
    n_process : int
        The result does not depend on their number.
    chunk : int
        Galaxies per task.

    Returns
    -------
    float32 (n, n_component, n_basis)
    """
    from tqdm import tqdm

    tasks = [(galaxies[slice(a, a + chunk)], basis, pixel_scale, psf_sigma) for a in range(0, len(galaxies), chunk)]
    if n_process == 1:
        return np.concatenate([_project(t) for t in tqdm(tasks, "maps", disable=None)])
    with multiprocessing.get_context("spawn").Pool(n_process) as pool:
        return np.concatenate(list(tqdm(pool.imap(_project, tasks), "maps", len(tasks), disable=None)))
