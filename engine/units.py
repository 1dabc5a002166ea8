"""Units of fluxes, types of arrays, and notices about input."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
IntArray = NDArray[np.int32]

_PACKAGE = __name__.partition(".")[0] + "."

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


class InputWarning(UserWarning):
    """A notice: input was completed, corrected or left out.

    The result may differ from the caller's expectation. The command line prints a notice as a line. An option that was
    honoured needs no notice.
    """


def notify(text: str) -> None:
    """Warn of a fact about the input, at the line that called into this package.

    Parameters
    ----------
    text : str
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, InputWarning, stacklevel=level)
