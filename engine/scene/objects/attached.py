"""Parts that an image object carries beside its pixels: uncertainty, PSF and WCS."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deblendrt.engine.scene.objects.arrays import (
    Numbers,
    is_a,
    is_nddata,
    is_sequence,
    read_numbers,
    refuse_uncertainty,
    stacked,
)

POWERS = {"std": 2, "var": 1, "ivar": -1}  # a variance is the uncertainty to this power


class Attached(NamedTuple):
    """Parts of an image, from all its planes.

    Attributes
    ----------
    variance : Numbers, or None
    psf : Any
        PSF images, an entry for each plane; or None.
    wcs : list
        WCS objects of the planes that have one.
    """

    variance: Numbers | None
    psf: Any
    wcs: list[Any]


def attached(image: Any, name: str) -> Attached:
    """Return the parts that an image carries.

    Parameters
    ----------
    image : an object that holds an array, or a sequence of such objects for the bands
    name : str
        Name of the argument, for messages.

    Returns
    -------
    Attached

    Raises
    ------
    ValueError
        The uncertainty is of an unknown type, or only some bands have an uncertainty or a PSF.
    """
    planes = list(image) if is_sequence(image) else [image]
    carriers = [plane for plane in planes if is_nddata(plane) or is_a(plane, "astropy.nddata", "Cutout2D")]
    wcs = [plane.wcs for plane in carriers if plane.wcs is not None]
    found = {}
    for part in ("uncertainty", "psf"):
        each = [getattr(plane, part, None) for plane in carriers]
        if any(entry is not None for entry in each):
            missing = len(planes) - sum(entry is not None for entry in each)
            if missing:
                raise ValueError(f"{name}: expected {part} in all bands or in none, got none in {missing} of "
                                 f"{len(planes)}")
            found[part] = each
    variance, psf = None, found.get("psf")
    if "uncertainty" in found:
        parts = [read_variance(entry, f"{name}.uncertainty") for entry in found["uncertainty"]]
        variance = stacked(parts, f"{name}.uncertainty") if is_sequence(image) else parts[0]
    if psf is not None and not is_sequence(image):
        psf = psf[0]
    return Attached(variance, psf, wcs)


def read_variance(value: Any, name: str) -> Numbers:
    """Return a variance: numbers, or an astropy uncertainty, converted to a variance.

    Raises
    ------
    ValueError
        The uncertainty is none of standard deviation, variance and inverse variance.
    """
    if is_sequence(value) and any(is_a(item, "astropy.nddata", "NDUncertainty") for item in value):
        return stacked([read_variance(item, f"{name}[{i}]") for i, item in enumerate(value)], name)
    if not is_a(value, "astropy.nddata", "NDUncertainty"):
        refuse_uncertainty(value, name)
        return read_numbers(value, name)
    power = POWERS.get(value.uncertainty_type)
    if power is None:
        raise ValueError(f"{name}: expected a StdDevUncertainty, VarianceUncertainty or InverseVariance, got "
                         f"{type(value).__name__}")
    if value.array is None:
        raise ValueError(f"{name}: expected values, got a {type(value).__name__} without an array")
    given, unit = read_numbers(value.array, name), value.unit
    values = given.values
    if power != 1:
        values = values.astype(np.float64)
        with np.errstate(divide="ignore"):
            values = np.where(values >= 0, values**power, np.nan)
    return Numbers(values, (unit**power,) if unit is not None and str(unit) else given.units, given.masked)
