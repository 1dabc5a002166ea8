"""The flags of a source: a bit for each problem of its data or its fit.

A flag never stops a batch: a flagged source keeps its row. The values are part of the file format, so a bit never gets
another meaning.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Flag(enum.IntFlag):
    """The bits of a source's `flags`; `DESCRIPTIONS` has their meanings."""

    NON_FINITE = 1 << 0
    NO_DATA = 1 << 1
    OFF_IMAGE = 1 << 2
    EDGE = 1 << 3
    TOO_CLOSE = 1 << 4
    MASKED_CENTER = 1 << 5
    VARIANCE_ESTIMATED = 1 << 6
    BAND_MISSING = 1 << 7
    NOT_CONVERGED = 1 << 8
    PRIOR_OUTLIER = 1 << 9
    POOR_FIT = 1 << 10
    PSF_NOT_NORMALIZED = 1 << 11
    PSF_TOO_NARROW = 1 << 12
    CENTER_NOT_FINITE = 1 << 13
    UNMODELLED_FLUX = 1 << 14
    BAD_VARIANCE = 1 << 15
    OUTSIDE_PRIOR_FLUX = 1 << 16
    NEIGHBOUR_SUSPECT = 1 << 17
    FOUND = 1 << 18
    PSF_MISSING = 1 << 19
    NEAR_RESIDUAL_PEAK = 1 << 20
    SKY_OFFSET = 1 << 21
    PSF_NOMINAL = 1 << 22
    ZERO_PIXELS = 1 << 23


DESCRIPTIONS: dict[Flag, str] = {
    Flag.NON_FINITE: "unmasked NaN, infinite or fill values (1e8 sigma) in the source's window, dropped",
    Flag.NO_DATA: "no usable pixel in the source's window: not fitted",
    Flag.OFF_IMAGE: "centre off the image: not fitted",
    Flag.EDGE: "the source's window sticks out of the image",
    Flag.TOO_CLOSE: "another centre within one pixel",
    Flag.MASKED_CENTER: "the centre's pixel is unusable in every band",
    Flag.VARIANCE_ESTIMATED: "no variance was given in at least one band: estimated from the image, sky noise only",
    Flag.BAND_MISSING: "at least one of the model's bands has no usable pixel in the source's window",
    Flag.NOT_CONVERGED: "still moving after the last iteration",
    Flag.PRIOR_OUTLIER: "shape improbable under the prior",
    Flag.POOR_FIT: "chi2 of the source's own pixels too large, or residuals that follow its light",
    Flag.PSF_NOT_NORMALIZED: "a PSF did not sum to one and was normalised",
    Flag.PSF_TOO_NARROW: "a PSF narrower than the model's reference PSF, reproduced in part only",
    Flag.CENTER_NOT_FINITE: "centre NaN or infinite: not fitted",
    Flag.UNMODELLED_FLUX: "robust weights act in the source's window: flux that no listed source explains",
    Flag.BAD_VARIANCE: "unmasked pixels with zero, negative or NaN variance in the source's window, dropped",
    Flag.OUTSIDE_PRIOR_FLUX: "fainter or brighter than the galaxies that the model was trained on",
    Flag.NEIGHBOUR_SUSPECT: "another source of the blend is not converged, a poor fit, a prior outlier or beside "
                            "unmodelled flux: errors may be too small",
    Flag.FOUND: "not in the list of sources: found in the residual of the others",
    Flag.PSF_MISSING: "no PSF was given for the source's cell: the nearest cell's was used",
    Flag.NEAR_RESIDUAL_PEAK: "a peak of the residual within 3 arcsec: a source that the list lacks, or a misfit",
    Flag.SKY_OFFSET: "the residual has a sky that moves the flux by more than half of its error: background is off",
    Flag.PSF_NOMINAL: "no PSF was given: the model's nominal PSF was used",
    Flag.ZERO_PIXELS: "regions of exact zeros in the source's window, taken as no data",
}

SUSPECT = Flag.NOT_CONVERGED | Flag.PRIOR_OUTLIER | Flag.POOR_FIT | Flag.UNMODELLED_FLUX
"""A source with any of these flags puts NEIGHBOUR_SUSPECT on the other sources of its blend."""

NOT_FITTED = Flag.NO_DATA | Flag.OFF_IMAGE | Flag.CENTER_NOT_FINITE
"""A source with any of these flags has NaN results and an empty model."""

UNTRUSTED = NOT_FITTED | Flag.POOR_FIT | Flag.NOT_CONVERGED | Flag.PRIOR_OUTLIER | Flag.NEIGHBOUR_SUSPECT
"""A source is trusted if it has none of these flags."""


def trusted(flags: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the mask of the sources that have none of the flags `UNTRUSTED`.

    Parameters
    ----------
    flags : int64 (n_source,)

    Returns
    -------
    bool (n_source,)
    """
    return (np.asarray(flags) & int(UNTRUSTED)) == 0


def describe(flags: int) -> list[str]:
    """Return the meaning of a source's flags in words.

    Parameters
    ----------
    flags : int

    Returns
    -------
    list of str
        "NAME: description" for each set bit, lowest bit first.

    Raises
    ------
    ValueError
        A bit is set that this version does not know.
    """
    value = int(flags)
    known = sum(DESCRIPTIONS)
    if value & ~known:
        raise ValueError(f"flags: expected bits of {known:#x}, got {value:#x}")
    return [f"{flag.name}: {text}" for flag, text in DESCRIPTIONS.items() if value & flag]
