"""The options of a call, checked."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from deblendrt.engine.scene.objects.arrays import number


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checked options of a call; see `Deblender.deblend_batch`."""

    solver: str
    n_iteration: int
    start: str
    robust: bool
    detail: bool
    sky: str
    center_sigma: float
    aperture_diameter: float
    star_fraction: float
    n_threads: int
    memory_limit: float | None


def checked_settings(solver_name: str, n_iteration: int | None, start: str, robust: bool, detail: bool,
                     sky: str, center_sigma: float, aperture_diameter: float, star_fraction: float, n_threads: int,
                     memory_limit: float | None, *, iterations: Mapping[str, int]) -> Settings:
    """Check the options of `Deblender.deblend_batch`.

    Parameters
    ----------
    iterations : mapping of str to int
        Default number of iterations of every known solver.

    Raises
    ------
    ValueError
        An option is wrong. The message names the argument, the expectation and the value.
    """
    center_sigma, aperture_diameter, star_fraction, memory_limit = (
        _without_unit(value, name, unit) for value, name, unit in (
            (center_sigma, "center_sigma", "pix"), (aperture_diameter, "aperture_diameter", "arcsec"),
            (star_fraction, "star_fraction", ""), (memory_limit, "memory_limit", "byte")))
    for name, value in (("robust", robust), ("detail", detail)):
        check_yes_or_no(value, name)
    if not isinstance(solver_name, str) or solver_name not in iterations:
        raise ValueError(f"solver: expected one of {sorted(iterations)}, got {solver_name!r}")
    if start not in ("linear", "encoder"):
        raise ValueError(f"start: expected 'linear' or 'encoder', got {start!r}")
    if sky not in ("subtracted", "fit"):
        raise ValueError(f"sky: expected 'subtracted' or 'fit', got {sky!r}")
    count = iterations[solver_name] if n_iteration is None else n_iteration
    if not _is_whole(count, 0):
        raise ValueError(f"n_iteration: expected a whole number of at least 0, got {n_iteration!r}")
    if not (isinstance(center_sigma, numbers.Real) and 0 < center_sigma < np.inf):
        raise ValueError(f"center_sigma: expected a positive number of pixels, got {center_sigma!r}")
    if not (isinstance(aperture_diameter, numbers.Real) and 0 < aperture_diameter < np.inf):
        raise ValueError(f"aperture_diameter: expected a positive number of arcsec, got {aperture_diameter!r}")
    if not (isinstance(star_fraction, numbers.Real) and 0 < star_fraction < 1):
        raise ValueError(f"star_fraction: expected a number between 0 and 1, got {star_fraction!r}")
    if not (memory_limit is None or (isinstance(memory_limit, numbers.Real) and memory_limit > 0)):
        raise ValueError(f"memory_limit: expected a positive number of bytes, got {memory_limit!r}")
    if not _is_whole(n_threads, 1):
        raise ValueError(f"n_threads: expected a whole number of at least 1, got {n_threads!r}")
    return Settings(solver_name, int(count), start, bool(robust), bool(detail), sky, float(center_sigma),
                    float(aperture_diameter), float(star_fraction), int(n_threads),
                    None if memory_limit is None else float(memory_limit))


def check_yes_or_no(value: Any, name: str) -> None:
    """Raise ValueError if an option is not True or False: the text "False" would count as True."""
    if not isinstance(value, bool | np.bool_) and not (isinstance(value, int) and value in (0, 1)):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def _without_unit(value: Any, name: str, unit: str) -> Any:
    """Return a Quantity as a number of a unit, and any other value as it is."""
    if not hasattr(value, "unit"):
        return value
    try:
        return number(value, (unit,))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a number{' of ' * bool(unit)}{unit}, got {value}") from error


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Real) and float(value) >= least and float(value).is_integer()
