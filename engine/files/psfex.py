"""Reader of PSFEx files: a PSF as a polynomial in the position, with images as coefficients.

A file has a table ``PSF_DATA`` with the column ``PSF_MASK`` (n_term, n_y, n_x), the coefficients, and header keys:
``PSF_SAMP`` (image pixels for one pixel of the coefficients), ``POLNAXIS``, ``POLNAME1`` ..., ``POLZERO1`` ...,
``POLSCAL1`` ..., ``POLGRP1`` ... and ``POLDEG1``. The polynomial's terms run through powers of the first variable
fastest. Positions of SourceExtractor count from 1. The images are effective PSFs: they contain the pixel.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.fits_check import open_fits

LANCZOS = 4  # half-width of the interpolation in pixels of the coefficients, as PSFEx' own
PSFEX_AXES = {"X_IMAGE": 0, "Y_IMAGE": 1, "XWIN_IMAGE": 0, "YWIN_IMAGE": 1, "XPSF_IMAGE": 0, "YPSF_IMAGE": 1,
              "X_IMAGE_DBL": 0, "Y_IMAGE_DBL": 1}
MAX_DEGREE, MAX_PSFEX_SIDE = 12, 1023


@dataclasses.dataclass(frozen=True, eq=False)
class PsfexModel:
    """A PSF that varies over an image as a polynomial in the position.

    Attributes
    ----------
    coefficients : float64 (n_term, n_y, n_x)
    powers : int64 (n_term, n_axis)
        Exponents of the polynomial's variables in each term.
    axis : tuple of int (n_axis,)
        0 for a variable that is x, 1 for y.
    zero, scale : float64 (n_axis,) [pixel]
        Zero points, counted from 1, and scales of the variables.
    sampling : float [pixel]
        Image pixels for one pixel of the coefficients.
    """

    coefficients: NDArray[np.float64]
    powers: NDArray[np.int64]
    axis: tuple[int, ...]
    zero: NDArray[np.float64]
    scale: NDArray[np.float64]
    sampling: float

    def __call__(self, x: float, y: float) -> NDArray[np.float64]:
        """Return the PSF image, float64 (q, q) with q odd, at a 0-based position [pixel]."""
        place = np.array([x, y])[list(self.axis)] + 1.0
        terms = np.prod(((place - self.zero) / self.scale) ** self.powers, axis=1)
        fine = np.tensordot(terms, self.coefficients, 1)
        if self.sampling == 1 and fine.shape[0] == fine.shape[1] and fine.shape[0] % 2:
            return np.asarray(fine)
        side = min(int(min(fine.shape) * self.sampling) | 1, MAX_PSFEX_SIDE)
        rows, columns = (_interpolation(n, side, self.sampling) for n in fine.shape)
        return np.asarray(rows @ fine @ columns.T)


def read_psfex(path: str | Path) -> PsfexModel:
    """Read a PSFEx file.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    PsfexModel

    Raises
    ------
    ValueError
        The file is no PSFEx file, or its PSF depends on more than the position.
    """
    with open_fits(path) as hdus:
        table = next((hdu for hdu in hdus if not hdu.is_image and "PSF_MASK" in (hdu.columns.names or [])), None)
        if table is None:
            raise ValueError(f"{path}: expected a PSFEx file with a column PSF_MASK; found extensions "
                             f"{', '.join(hdu.name or 'unnamed' for hdu in hdus)}")
        header, mask = table.header, np.asarray(table.data["PSF_MASK"], np.float64)
    coefficients = mask.reshape(mask.shape[-3:]) if mask.ndim >= 3 and mask.shape[0] == 1 else mask
    number = int(header.get("POLNAXIS", 0))
    names = [str(header.get(f"POLNAME{k + 1}", "")).strip() for k in range(number)]
    if unknown := [name for name in names if name not in PSFEX_AXES]:
        raise ValueError(f"{path}: expected a PSF that depends on the position ({', '.join(PSFEX_AXES)}), got "
                         f"{', '.join(unknown)}")
    groups = [int(header.get(f"POLGRP{k + 1}", 1)) for k in range(number)]
    degree = int(header.get("POLDEG1", 0)) if number else 0
    if len(set(groups)) > 1 or not 0 <= degree <= MAX_DEGREE or number > 2:
        raise ValueError(f"{path}: expected one polynomial in x and y of a degree up to {MAX_DEGREE}, got groups "
                         f"{groups} and degree {degree}")
    powers = _powers(number, degree)
    sampling = float(header.get("PSF_SAMP", 1.0))
    if coefficients.ndim != 3 or len(coefficients) != len(powers) or not np.isfinite(coefficients).all():
        raise ValueError(f"{path}: expected {len(powers)} finite images in PSF_MASK, got shape {mask.shape}")
    if not 0.05 <= sampling <= 20:
        raise ValueError(f"{path}: PSF_SAMP is {sampling}, expected 0.05 to 20 pixels")
    zero, scale = (np.array([float(header.get(f"{key}{k + 1}", fallback)) for k in range(number)])
                   for key, fallback in (("POLZERO", 0.0), ("POLSCAL", 1.0)))
    if not (np.isfinite(zero).all() and np.isfinite(scale).all() and (scale != 0).all()):
        raise ValueError(f"{path}: POLZERO and POLSCAL are {zero} and {scale}, expected finite numbers")
    return PsfexModel(coefficients, powers, tuple(PSFEX_AXES[name] for name in names), zero, scale, sampling)


def _powers(number: int, degree: int) -> NDArray[np.int64]:
    """Return the exponents of the terms, int64 (n_term, number), the first variable fastest."""
    if number == 2:
        return np.array([(i, j) for j in range(degree + 1) for i in range(degree + 1 - j)], np.int64)
    return np.arange(degree + 1)[:, None] if number else np.zeros((1, 0), np.int64)


def _interpolation(n: int, side: int, sampling: float) -> NDArray[np.float64]:
    """Return Lanczos' interpolation of n samples about their middle pixel n // 2 to `side` pixels, (side, n)."""
    distance = (np.arange(side) - side // 2)[:, None] / sampling - (np.arange(n) - n // 2)
    weight = np.where(np.abs(distance) < LANCZOS, np.sinc(distance) * np.sinc(distance / LANCZOS), 0.0)
    # Between samples the weights' sum is off by up to 1%: flat light must stay flat.
    total = weight.sum(1, keepdims=True)
    return weight / np.where(np.abs(total) > 0.5, total, 1.0)
