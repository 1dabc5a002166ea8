"""The training set: components of galaxies as coefficients of the basis, and their fluxes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deblendrt.training.config import Config
from deblendrt.training.simulation.components import component_coefficients
from deblendrt.training.simulation.population import Galaxies


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Isolated galaxies as coefficients.

    Attributes
    ----------
    maps : Tensor, float32 (n, n_component, n_basis)
        Components of unit flux: bulge, disk, and bar, knots and companion of galaxies with structure.
    flux : Tensor, float32 (n, n_component, n_band) [nJy]
    """

    maps: Tensor
    flux: Tensor

    def total(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-flux coefficients (n, n_band, n_basis) and log flux (n, n_band) of some galaxies."""
        flux = self.flux[rows]
        total = flux.sum(1)
        return (flux / total[:, None]).mT @ self.maps[rows], total.log()


def project_galaxies(galaxies: Galaxies, phi: NDArray[np.float32], settings: Config, n_process: int = 1) -> TrainingSet:
    """Return the training set of galaxies: their components, drawn and projected on the basis.

    Parameters
    ----------
    galaxies : Galaxies
    phi : float32 (n_basis, size, size)
    settings : Config
    n_process : int
        Processes that draw. The result does not depend on their number.

    Returns
    -------
    TrainingSet
    """
    maps = component_coefficients(galaxies, phi, settings.survey.pixel_scale, settings.basis.reference_psf_sigma,
                                  n_process)
    flux = galaxies.component_flux.astype(np.float32)
    return TrainingSet(torch.from_numpy(maps), torch.from_numpy(flux))
