"""Arguments of `deblend_batch` made from bytes: right arguments, and arguments with errors in any place."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np

SMALL = ("g", "r", "i")


@functools.cache
def _model() -> dict[str, Any]:
    return {"bundle_bands": SMALL, "bundle_pixel_scale": 0.2, "window_half": 5, "bundle_sky_sigma": (1.0, 1.5, 2.0)}


class Refuses:
    """An object with wrong attributes."""

    ndim = 3
    shape = (3, 2, "x")
    unit = "m"

    def __len__(self) -> int:
        return 3


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, 1j, "", "gri", "star", b"abc", (), [], [[]], [[], []],
    {},
    {"a": 1}, set(), [None], [None, None], [1, [2, 3]], [[1, 2], [3]], ["a", "b"], object(), Refuses(),
    range(3), lambda x, y: x)


def call(data: bytes) -> object:
    """Call `make_scenes` with arguments that these bytes decide."""
    from deblendrt.engine.scene.scene import make_scenes

    rng = random.Random(data)
    numbers = np.random.default_rng(rng.randrange(2**32))
    n_scene, n_band = rng.choice((1, 1, 2, 3)), rng.choice((1, 3, 3))
    nested = n_scene > 1 or rng.random() < 0.3
    shapes = [(n_band, rng.randrange(1, 9), rng.randrange(1, 9)) for _ in range(n_scene)]
    counts = [rng.randrange(4) for _ in range(n_scene)]

    def each(make: Any) -> Any:
        made = [make(shape, count) for shape, count in zip(shapes, counts, strict=True)]
        return made if nested else made[0]

    def image(shape: tuple[int, ...], count: int) -> Any:
        return _spoilt(rng, numbers.normal(size=shape).astype(rng.choice((np.float32, np.float64, ">f4", np.int16))))

    options: dict[str, Any] = {
        "bands": rng.choice((None, "gri", "g,r,i", ["g", "r", "i"])) if n_band == 3 else rng.choice(("r", ["i"])),
        "variance": rng.choice((None, 1.0, each(lambda s, c: _spoilt(rng, numbers.uniform(0.1, 2, s))))),
        "mask": rng.choice((None, each(lambda s, c: numbers.random(s[1:]) < 0.2),
                            each(lambda s, c: np.zeros(s, rng.choice((bool, np.uint8, np.float32)))))),
        "psf": rng.choice((None, _spoilt(rng, np.ones((n_band, 5, 5))), [np.ones((3, 3))] * n_band,
                           lambda x, y: np.ones((n_band, 3, 3)))),
        "background": rng.choice((None, 0.5, [0.1] * n_band)),
        "zero_point": rng.choice((None, 27.0, [27.0] * n_band)),
        "pixel_scale": rng.choice((None, None, None, 0.2, 0.2, 0.2, 0.3)),
        "kind": rng.choice((None, "star", "auto", each(lambda s, c: ["galaxy"] * c)))}
    cutouts = each(image)
    centers = each(lambda s, c: _spoilt(rng, numbers.uniform(-2, 9, (c, 2))))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        options[rng.choice(list(options))] = _odd(rng, cutouts)
    if rng.random() < 0.1:
        cutouts = _odd(rng, cutouts)
    if rng.random() < 0.1:
        centers = _odd(rng, centers)
    return make_scenes(cutouts, centers, **_model(), **options)


def _spoilt(rng: random.Random, array: np.ndarray) -> Any:
    """An array, sometimes with bad values, another type, a mask, a unit, a cut or one axis too many."""
    kind = rng.randrange(24)
    if kind == 0 and array.size and array.dtype.kind == "f":
        array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 1e38, -1e300, 0))
    elif kind == 1:
        return array[None]
    elif kind == 2:
        return array[..., :-1]
    elif kind == 3:
        return np.ma.masked_array(array, array > 0)
    elif kind == 4:
        from astropy import units

        return array * rng.choice((units.nJy, units.Jy, units.adu, units.nJy**2, units.mag, units.m))
    elif kind == 5:
        return array.astype(rng.choice((object, complex, str, "M8[s]", np.float16, np.uint64)))
    elif kind == 6:
        return array.tolist()
    elif kind == 7:
        return array[:0]
    return array


def _odd(rng: random.Random, value: Any) -> Any:
    """A value of a wrong kind."""
    kind = rng.randrange(4)
    if kind == 0:
        return [rng.choice(ODD) for _ in range(rng.randrange(4))]
    if kind == 1 and isinstance(value, list):
        return value[:-1]
    if kind == 2:
        return np.array(rng.choice((1.0, [1.0], [[1.0, 2.0]], np.ones((2, 2, 2)), [], ["x"], np.zeros((0, 2)))))
    return rng.choice(ODD)
