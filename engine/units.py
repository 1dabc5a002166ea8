"""Units of fluxes, and types of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
IntArray = NDArray[np.int32]

AB_ZERO_POINT = 31.4  # AB magnitude of 1 nJy


def to_magnitude(flux: Any) -> Any:
    """AB magnitudes of fluxes.

    Parameters
    ----------
    flux : float or array [nJy]
        Positive.

    Returns
    -------
    float or array [AB mag]
    """
    return AB_ZERO_POINT - 2.5 * np.log10(flux)


def to_flux(magnitude: Any) -> Any:
    """Fluxes of AB magnitudes. An image's zero point as magnitude gives the flux of one unit of the image.

    Parameters
    ----------
    magnitude : float or array [AB mag]

    Returns
    -------
    float or array [nJy]
    """
    return 10 ** ((AB_ZERO_POINT - magnitude) / 2.5)
