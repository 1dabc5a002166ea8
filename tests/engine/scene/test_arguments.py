"""Arguments that are no numbers, sequences or images raise a ValueError that names the argument."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from astropy import units as u

from deblendrt.engine.scene.psf.field import CellPsf
from deblendrt.engine.scene.scene import make_scenes
from deblendrt.engine.scene.settings import checked_settings

HUGE = 10**400
MODEL: dict[str, Any] = {"bundle_bands": ("g", "r"), "bundle_pixel_scale": 0.2, "window_half": 5}


class Unsized:
    """An object with a length and dimensions that cannot be iterated."""

    ndim, shape = 1, (2,)

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(("argument", "value", "message"), [
    ("bands", 3, "bands: expected distinct names"), ("bands", np.zeros(()), "bands: expected"),
    ("bands", np.zeros((2, 2)), "bands: expected"), ("bands", [["g"], ["r"]], "bands: expected"),
    ("bands", [None, {}], "bands: expected"),
    ("pixel_scale", HUGE, "pixel_scale: expected arcsec"), ("pixel_scale", 1j, "pixel_scale: expected"),
    ("kind", np.zeros(()), "kind"), ("kind", 5, "kind"),
    ("psf", HUGE, "psf"), ("psf", [[[HUGE]], [[1]]], "psf"), ("psf", [HUGE, HUGE], "psf"),
    ("psf", np.float64(-1), "psf"), ("psf", True, "psf"),
    ("psf", lambda x, y: -1.5, "psf of cell"), ("psf", lambda x, y: [[HUGE]] * 2, "psf of cell"),
    ("psf", CellPsf([[[[["a"]]]]], np.array([0, 9]), np.array([0, 9])), "psf of cell"),
    ("zero_point", HUGE, "zero_point"), ("variance", HUGE, "variance"), ("background", {}, "background"),
    ("mask", {}, "mask"), ("centers", [[HUGE, 1]], "centers"), ("centers", Unsized(), "centers"),
    ("cutouts", HUGE, "cutouts"), ("cutouts", [[[HUGE]]], "cutouts"), ("cutouts", Unsized(), "cutouts"),
])
def test_one_scene(argument: str, value: Any, message: str) -> None:
    arguments = {"cutouts": np.ones((2, 8, 8)), "centers": [[4, 4]], "variance": 1.0, **MODEL} | {argument: value}
    with pytest.raises(ValueError, match=message):
        make_scenes(**arguments)


@pytest.mark.parametrize("argument", ["centers", "variance", "mask", "psf", "kind", "background"])
@pytest.mark.parametrize("value", [Unsized(), np.zeros(()), object(), [None], {}])
def test_two_scenes(argument: str, value: Any) -> None:
    arguments = {"cutouts": [np.ones((2, 8, 8))] * 2, "centers": [[[4, 4]]] * 2, **MODEL} | {argument: value}
    if argument in ("variance", "background") and isinstance(value, np.ndarray):
        make_scenes(**arguments)  # a number is valid for all scenes
        return
    with pytest.raises(ValueError, match=argument):
        make_scenes(**arguments)


OPTIONS: dict[str, Any] = {"center_sigma": 0.2, "aperture_diameter": 1.2, "star_fraction": 0.1, "memory_limit": 4e9,
                           "robust": True, "detail": True}


def settings(**options: Any) -> Any:
    arguments = inspect.signature(checked_settings).parameters
    plain = {"solver_name": "adam", "n_iteration": 3, "start": "encoder", "n_threads": 1, "sky": "subtracted"} | OPTIONS
    return checked_settings(**{key: value for key, value in (plain | options).items() if key in arguments},
                            iterations={"adam": 3})


@pytest.mark.parametrize(("option", "value"), [
    ("center_sigma", 0.2 * u.pix), ("aperture_diameter", 0.02 * u.arcmin), ("star_fraction", 10 * u.percent),
    ("memory_limit", 4 * u.Gbyte), ("robust", np.True_), ("detail", 1),
])
def test_an_option_with_a_unit(option: str, value: Any) -> None:
    assert getattr(settings(**{option: value}), option) == pytest.approx(OPTIONS[option])


@pytest.mark.parametrize(("option", "value"), [
    ("center_sigma", 0.2 * u.arcsec), ("aperture_diameter", 6 * u.pix), ("star_fraction", 0.1 * u.mag),
    ("memory_limit", 4 * u.s), ("robust", "False"), ("detail", "no"), ("robust", None), ("detail", 2),
])
def test_an_option_with_a_wrong_unit(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected"):
        settings(**{option: value})
