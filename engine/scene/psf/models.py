"""PSF models of other packages as functions of the position: Piff, photutils, astropy and GalSim.

A package is never imported: an object of a class exists only after its package was loaded. Positions of Piff count from
1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files.psfex import PsfexModel
from deblendrt.engine.scene.objects.arrays import is_a

PsfFunction = Callable[[float, float], Any]

MODEL_SIDE = 51  # pixel: side of the image of a model that states none; a Moffat profile keeps 98% of its light in it
MAX_MODEL_SIDE = 201  # pixel: wider images cost time, and their edges are far outside a source's window


def is_model(value: Any) -> bool:
    """Return whether a value is a model of the PSF of one band that `model_function` knows."""
    foreign = (("piff", "PSF"), ("astropy.modeling", "Model"), ("galsim", "GSObject"))
    return isinstance(value, PsfexModel) or any(is_a(value, *names) for names in foreign)


def model_function(value: Any, pixel_scale: float, name: str) -> PsfFunction | None:
    """Return a function (x, y) -> PSF image (q, q) of one band for a model; None for a value that is no known model.

    Parameters
    ----------
    value : PsfexModel, piff.PSF, astropy.modeling.Model (and with it the models of photutils), or galsim.GSObject
    pixel_scale : float [arcsec]
    name : str
        Name of the argument, for messages.

    Returns
    -------
    callable or None
    """
    draw: PsfFunction
    if isinstance(value, PsfexModel):
        draw = value
    elif is_a(value, "piff", "PSF"):
        draw = _of_piff(value, name)
    elif is_a(value, "astropy.modeling", "Model"):
        draw = _of_astropy(value, name)
    elif is_a(value, "galsim", "GSObject"):
        def draw(x: float, y: float) -> Any:  # GalSim adds the pixel
            return value.drawImage(nx=MODEL_SIDE, ny=MODEL_SIDE, scale=pixel_scale).array
    else:
        return None

    def normal(x: float, y: float) -> NDArray[np.float64]:
        image = np.asarray(draw(x, y), np.float64)
        total = image.sum()  # the amplitude of a model has no meaning
        if not 0 < total < np.inf:
            raise ValueError(f"{name}: expected a model with a positive sum, got the sum {total:g} at ({x:g}, {y:g})")
        return image / total

    return normal


def _of_piff(model: Any, name: str) -> PsfFunction:
    def draw(x: float, y: float) -> NDArray[np.float64]:
        try:
            image = model.draw(x=x + 1, y=y + 1, center=True, stamp_size=MODEL_SIDE)
        except (TypeError, ValueError) as error:  # a model of several chips, or of the sources' colours
            raise ValueError(f"{name}: expected a model of Piff that depends on x and y alone, or a function (x, y) -> "
                             f"images that calls it; Piff says: {str(error)[:200]}") from error
        return np.asarray(image.array, np.float64)

    return draw


def _of_astropy(model: Any, name: str) -> PsfFunction:
    """Return the function of a 2-D model, whose parameters place it by x_0, y_0 or x_mean, y_mean."""
    names = list(model.param_names)
    pair = next((pair for pair in (("x_0", "y_0"), ("x_mean", "y_mean")) if set(pair) <= set(names)), None)
    if getattr(model, "n_inputs", 0) != 2 or pair is None:
        raise ValueError(f"{name}: expected a model of x and y with the parameters x_0, y_0 or x_mean, y_mean, got "
                         f"{type(model).__name__} with {', '.join(names) or 'none'}")
    units = {str(unit) for key in names if (unit := getattr(model, key).unit) is not None}
    if units - {"", "pix"}:
        raise ValueError(f"{name}: expected parameters in pixels, got {', '.join(sorted(units))}")
    values = {key: float(np.ravel(getattr(model, key).value)[0]) for key in names}
    if values.get("flux", 1.0) == 0:
        values["flux"] = 1.0
    side = MODEL_SIDE
    if getattr(model, "data", None) is not None and hasattr(model, "oversampling"):
        over = np.broadcast_to(np.asarray(model.oversampling, np.float64), 2)
        side = int(min(np.array(model.data.shape[-2:]) / over))
        side = min(side - 1 + side % 2, MAX_MODEL_SIDE)
    offset = np.arange(side) - side // 2

    def draw(x: float, y: float) -> NDArray[np.float64]:
        place = values | {pair[0]: x, pair[1]: y}
        columns, rows = np.meshgrid(x + offset, y + offset)
        return np.asarray(model.evaluate(columns, rows, *(place[key] for key in names)), np.float64)

    return draw


def fwhm_in_pixels(value: Any, pixel_scale: float, name: str) -> float:
    """Return the FWHM that a number means, in pixels.

    Parameters
    ----------
    value : float or Quantity [arcsec]
        A Quantity may also be in pixels.
    pixel_scale : float [arcsec]
    name : str
        Name of the argument, for messages.

    Returns
    -------
    float [pixel]

    Raises
    ------
    ValueError
        The number is not positive, or wider than `MODEL_SIDE` pixels.
    """
    width = math.nan
    try:
        if hasattr(value, "unit") and hasattr(value, "to_value"):
            text = str(value.unit)
            width = float(value.to_value("pix")) if text == "pix" else float(value.to_value("arcsec")) / pixel_scale
        elif not isinstance(value, bool | np.bool_):
            width = float(value) / pixel_scale
    except (TypeError, ValueError, OverflowError):  # a unit that is no angle is a ValueError
        pass
    if not 0 < width <= MODEL_SIDE:
        raise ValueError(f"{name}: expected a FWHM in arcsec, above 0 and up to {MODEL_SIDE * pixel_scale:.3g}, got "
                         f"{value!r}")
    return width
