"""How a graph's output is compared with its golden one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def golden_error(actual: NDArray[Any], expected: NDArray[Any], *, rtol: float = 1.0, atol: float = 0.0) -> float:
    """Largest of |actual - expected| / (atol + rtol scale): above 1 is a failure; rtol = 1 gives the relative error.

    The scale is a source's own: the largest |expected| of its row. A bright source therefore does not hide an error in
    a faint one, and elements that cancel to nearly nothing are not held to a precision that no sum has. Where a row is
    a single number, which may cross zero, the scale is the root mean square over sources.

    Parameters
    ----------
    actual, expected : float (n_source, ...)
    rtol, atol : float

    Returns
    -------
    float
        Infinite where the shapes differ or anything is not finite.
    """
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    expected = expected.astype(np.float64)
    difference = np.abs(actual.astype(np.float64) - expected).reshape(len(expected), -1)
    if expected.ndim == 1:
        scale = np.full((len(expected), 1), np.sqrt(np.mean(expected**2)))
    else:
        scale = np.abs(expected).reshape(len(expected), -1).max(1, keepdims=True)
    allowed = atol + rtol * scale
    return float(np.max(difference / np.where(allowed > 0, allowed, np.finfo(np.float64).tiny)))
