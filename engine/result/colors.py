"""Colour images of scenes.

Colours follow Lupton et al. (2004, PASP 116, 133): an arcsinh stretch of the mean of three bands, which keeps the
ratios of the bands. The stretch follows from the scene's noise. The balance of the bands follows from the total colour
of the scene's model.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from deblendrt.engine.result.result import DeblendResult

RGB_PREFERENCES = (("i", "r", "g"), ("z", "r", "g"), ("z", "i", "r"), ("y", "i", "g"))
REFERENCE_PREFERENCE = ("i", "r", "z", "g", "y", "u")
STRETCH = 18.0  # sigma of the mean image: noise is visible as a faint grain
SOFTENING = 8.0  # Lupton's Q: full white at sinh(Q)/Q = 186 times the stretch
BLACK = -1.0  # sigma of the mean image
COLOR_CONTRAST = 0.75  # 0: bands in nJy, all galaxies look red; 1: the scene's mean colour is white


@dataclasses.dataclass(frozen=True)
class Palette:
    """The bands, balance and stretch that turn a scene into colours.

    Attributes
    ----------
    channels : tuple of int
        Indices of the bands shown as red, green and blue; a grey image has one index.
    scale : float (n_channel,)
        Factor on each channel.
    sigma : float
        Standard deviation of the noise in the mean of the scaled channels.
    names : str
        Names of the bands for titles, such as ``"irg"``.
    """

    channels: tuple[int, ...]
    scale: NDArray[np.float64]
    sigma: float
    names: str

    def __call__(self, image: NDArray) -> NDArray[np.uint8]:
        """Return the colour image (n_y, n_x, 3) of an image (n_band, n_y, n_x) in nJy."""
        from astropy.visualization import make_lupton_rgb

        rgb = [np.nan_to_num(image[c]) * s for c, s in zip(self.channels, self.scale, strict=True)]
        if len(rgb) == 1:
            rgb = rgb * 3
        colors: NDArray[np.uint8] = make_lupton_rgb(
            *rgb, minimum=BLACK * self.sigma, stretch=STRETCH * self.sigma, Q=SOFTENING
        )
        return colors


def palette(result: DeblendResult, i_scene: int = 0) -> Palette:
    """Return the palette of a scene: its channels, their balance and the stretch."""
    scene, model = result.scenes[i_scene], result.model(i_scene)
    sigma = band_noise(scene.inverse_variance)
    usable = [b for b in range(len(result.bands)) if np.isfinite(sigma[b])]
    names = [result.bands[b] for b in usable]
    for preference in RGB_PREFERENCES:
        if set(preference) <= set(names):
            channels = tuple(result.bands.index(name) for name in preference)
            break
    else:
        # Unknown bands are assumed to be in the order of wavelength. Two bands give a grey image of their mean.
        n = len(usable)
        channels = (usable[-1], usable[n // 2], usable[0]) if n >= 2 else tuple(usable) or (0,)
    picked = list(channels)
    total = np.clip(np.nan_to_num(model[picked]).sum(axis=(1, 2)), 0, None)
    balance = (total.mean() / total) ** COLOR_CONTRAST if (total > 0).all() else np.ones(len(picked))
    noise = np.where(np.isfinite(sigma[picked]), sigma[picked], 1.0)
    n_channel = len(picked)
    return Palette(
        channels=channels,
        scale=balance,
        sigma=float(np.sqrt(np.sum((balance * noise) ** 2)) / n_channel),
        names="".join(result.bands[c] for c in channels),
    )


def reference_band(result: DeblendResult, i_scene: int = 0) -> int:
    """Return the index of the band that represents the scene: i if it has data, otherwise the next best band."""
    data = [result.bands[b] for b in np.flatnonzero(np.isfinite(band_noise(result.scenes[i_scene].inverse_variance)))]
    best = next((name for name in REFERENCE_PREFERENCE if name in data), data[len(data) // 2] if data else None)
    return result.bands.index(best) if best is not None else 0


def band_noise(inverse_variance: NDArray) -> NDArray[np.float64]:
    """Return the median sigma of every band, NaN for a band without data."""
    sigma = np.full(len(inverse_variance), np.nan)
    for b, weight in enumerate(inverse_variance):
        if (weight > 0).any():
            sigma[b] = np.median(weight[weight > 0].astype(np.float64)) ** -0.5
    return sigma
