"""Components of galaxies, bulge and disk, of unit flux: GalSim profiles, maps under the reference PSF, coefficients."""

from __future__ import annotations

import multiprocessing
from typing import Literal

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.training.simulation.population import Galaxies

Component = Literal["bulge", "disk"]
COMPONENTS: tuple[Component, ...] = ("bulge", "disk")
TRUNCATION = 8.0  # half-light radii; the SDSS photo pipeline's convention for de Vaucouleurs profiles
TRUNCATED_SERSIC = 3.0  # smallest index that is truncated: it has 3% of its light beyond, an index of 2 has 0.8%


def galsim_component(galaxies: Galaxies, i: int, component: Component) -> galsim.GSObject:
    """One component of one galaxy: unit total flux, centred, no PSF.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    component : {"bulge", "disk"}

    Returns
    -------
    galsim.GSObject
    """
    if component == "bulge":
        index, radius = float(galaxies.bulge_sersic[i]), float(galaxies.bulge_half_light_radius[i])
        ellipticity = galaxies.bulge_ellipticity[i]
    else:
        index, radius = float(galaxies.disk_sersic[i]), float(galaxies.disk_half_light_radius[i])
        ellipticity = galaxies.disk_ellipticity[i]
    if index == 1:
        profile = galsim.Exponential(half_light_radius=radius)
    else:
        trunc = TRUNCATION * radius if index >= TRUNCATED_SERSIC else 0.0
        profile = galsim.Sersic(index, half_light_radius=radius, trunc=trunc)
    return profile.shear(g=float(ellipticity), beta=float(galaxies.position_angle[i]) * galsim.radians)


def component_map(galaxies: Galaxies, i: int, component: Component, size: int, pixel_scale: float, psf_sigma: float,
                  offset: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float32]:
    """A component under the Gaussian reference PSF, sampled at pixel centres.

    Parameters
    ----------
    galaxies : Galaxies
    i : int
    component : {"bulge", "disk"}
    size : int [pixel]
    pixel_scale : float [arcsec]
    psf_sigma : float [pixel]
    offset : (float, float) [pixel]
        (x, y) of the component's centre, from the central pixel's centre.

    Returns
    -------
    float32 (size, size)
        Its sum is the fraction of the flux inside the stamp.
    """
    profile = galsim.Convolve(galsim_component(galaxies, i, component), galsim.Gaussian(sigma=psf_sigma * pixel_scale))
    image = profile.drawImage(nx=size, ny=size, scale=pixel_scale, offset=offset, method="no_pixel", dtype=np.float32)
    return image.array


def _project(task: tuple[Galaxies, NDArray[np.float32], float, float]) -> NDArray[np.float32]:
    galaxies, basis, pixel_scale, psf_sigma = task
    n_basis, size, _ = basis.shape
    maps = np.array([[component_map(galaxies, i, c, size, pixel_scale, psf_sigma) for c in COMPONENTS]
                     for i in range(len(galaxies))])
    return (maps.reshape(-1, size * size) @ basis.reshape(n_basis, -1).T).reshape(-1, len(COMPONENTS), n_basis)


def component_coefficients(galaxies: Galaxies, basis: NDArray[np.float32], pixel_scale: float, psf_sigma: float,
                           n_process: int = 1, chunk: int = 500) -> NDArray[np.float32]:
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
