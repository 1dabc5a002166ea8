"""Units of images, and of the arguments that must go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.scene.objects.arrays import Numbers
from deblendrt.engine.units import to_flux

ROOT = {1: "", 2: "2"}  # suffix of a power in messages


def flux_factor(unit: Any, power: int, name: str) -> float | None:
    """Return the factor from a unit to nJy (power 1) or nJy2 (power 2); None if the unit is no flux density.

    A nanomaggy has the AB zero point 22.5.
    """
    from astropy import units
    from astropy.units.function import FunctionUnitBase

    if isinstance(unit, FunctionUnitBase) or (unit.physical_type in ("unknown", "dimensionless") and any(
            base in (units.mag, units.dex) for base in unit.bases)):
        raise ValueError(f"{name}: expected a linear unit, got {unit}")
    for per in (units.dimensionless_unscaled, units.pix):  # nJy / pix is the flux of a pixel
        try:
            root = (unit if power == 1 else unit**0.5) * per
            return float(root.to(units.nJy, equivalencies=units.zero_point_flux(1 * units.AB)) ** power)
        except (ValueError, TypeError):  # no flux density, or a unit that astropy does not know
            continue
    return None


def image_factor(image: Numbers, zero_point: Any, names: Sequence[str], name: str) -> NDArray[np.float64]:
    """Return the flux of one image unit in each band.

    Parameters
    ----------
    image : Numbers
    zero_point : float () or (n_band,), or None [AB mag]
    names : sequence of str
        The caller's bands.
    name : str
        Name of the argument, for messages.

    Returns
    -------
    float64 (n_band,) [nJy]
    """
    factors = [flux_factor(unit, 1, name) for unit in image.units]
    if any(factor is not None for factor in factors) and zero_point is not None:
        raise ValueError("zero_point: expected None for images with a unit of flux density, got a number")
    if None in factors and zero_point is None:
        unit = image.units[factors.index(None)]
        raise ValueError(f"{name}: expected a unit of flux density, or zero_point= with counts, got the unit {unit}")
    if zero_point is not None:
        return np.broadcast_to(to_flux(zero_point), len(names))
    return np.broadcast_to(np.array([1.0 if factor is None else factor for factor in factors or [1.0]]), len(names))


def like_image_factor(given: Numbers, power: int, name: str, image: Numbers, factor: NDArray[np.float64],
                      counted: bool) -> NDArray[np.float64]:
    """Return the factor of an argument that has the image's unit, or its square.

    Parameters
    ----------
    given : Numbers
        The argument.
    power : int
        1 for a background, 2 for a variance.
    name : str
        Name of the argument, for messages.
    image : Numbers
    factor : float64 (n_band,) [nJy]
        Flux of one image unit.
    counted : bool
        Whether the image has a zero point.

    Returns
    -------
    float64 (n_band,) [nJy^power]
    """
    from astropy import units

    if not given.units:
        if image.units and not counted and (power == 2 or np.any(given.values != 0)):
            raise ValueError(f"{name}: expected a unit such as {image.units[0] ** power}, since the image has the unit "
                             f"{image.units[0]}; got numbers without a unit")
        return factor**power
    counts = [units.adu, units.electron, units.count, units.photon, units.DN]
    found = []
    for b in range(len(factor)):
        unit = given.units[b % len(given.units)]
        own = flux_factor(unit, power, name)
        if own is None and counted:
            bases = [image.units[b % len(image.units)]] if image.units else [
                base for base in counts if unit.is_equivalent(base**power)]
            if bases and unit.is_equivalent(bases[0]**power):
                own = float(unit.to(bases[0]**power) * factor[b]**power)
        if own is None:
            wanted = f"nJy{ROOT[power]}" if not counted else f"the image's{' squared' if power == 2 else ''}"
            raise ValueError(f"{name}: expected a unit that converts to {wanted}, got the unit {unit}")
        found.append(own)
    return np.array(found)
