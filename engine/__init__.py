"""The engine: scenes in, separated sources out.

    from deblendrt import engine
    result = engine.deblend_batch(cutouts, centers)

Nothing is loaded when this package is imported; the first call loads the bundled model.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deblendrt.cuda.driver.device import DeviceError
    from deblendrt.engine.adapters.dask.cluster import deblend_dask
    from deblendrt.engine.deblender import Deblender
    from deblendrt.engine.files.fits import ImageFile, read_image
    from deblendrt.engine.result.result import DeblendResult
    from deblendrt.engine.scene.flags import Flag
    from deblendrt.engine.scene.psf.field import CellPsf
    from deblendrt.engine.units import InputWarning

__all__ = ["CellPsf", "DeblendResult", "Deblender", "DeviceError", "Flag", "ImageFile", "InputWarning", "deblend_batch",
           "deblend_dask", "read_image"]

_HOMES = {"CellPsf": "engine.scene.psf.field", "Deblender": "engine.deblender",
          "DeblendResult": "engine.result.result", "DeviceError": "cuda.driver.device", "Flag": "engine.scene.flags",
          "ImageFile": "engine.files.fits", "InputWarning": "engine.units",
          "deblend_dask": "engine.adapters.dask.cluster", "read_image": "engine.files.fits"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"deblendrt.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _bundled() -> Deblender:
    from deblendrt.engine.deblender import Deblender

    return Deblender.load()


def deblend_batch(cutouts: Any, centers: Any, **options: Any) -> DeblendResult:
    """Deblend with the bundled LSST model on the CPU.

    Parameters
    ----------
    cutouts, centers
        See `Deblender.deblend_batch`, which also says what else may be given.
    **options
        Handed on.

    Returns
    -------
    DeblendResult
    """
    return _bundled().deblend_batch(cutouts, centers, **options)
