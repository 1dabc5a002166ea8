r"""The accuracy metrics. Every study takes them from here. NumPy only.

Notation: t is the true and p the reconstructed image of a source in a band, without noise.

- cosine = sum(p t) / sqrt(sum p^2 sum t^2) measures the shape and is blind to the flux.
- SSIM (Wang et al. 2004) of t and p, each divided by its own maximum, is blind to the flux too: 7x7 uniform window,
  sample covariances, K1 = 0.01, K2 = 0.03, data range 1, mean over the windows that fit inside the stamp. Sky around a
  source scores 1, so the figure depends on the stamp, which has 45x45 pixels here.
- flux error = |p / t - 1|; aperture fluxes are exact-overlap sums (10x10 subpixels) in circles.
- blendedness (Bosch et al. 2018 without noise terms) = 1 - sum(t^2) / sum(t * field), field the sum of all sources.
- SNR = flux / isolated error, the error of the flux if the source were alone and its profile known.
- pull = (measured - true) / reported error; its width (1.4826 times the median absolute deviation from zero) is 1 where
  errors are right.
- coverage at k = fraction of |pull| <= k: how often the truth lies within k reported errors. It is erf(k / sqrt 2) if
  errors are right and Gaussian.
- noise floor: the joint linear solve for all fluxes when all the TRUE profiles are known. No deblender without a prior
  on fluxes does better.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
AnyFloat = NDArray[np.floating[Any]]

SSIM_WINDOW = 7  # pixel
SSIM_STAMP = 45  # pixel
APERTURE_DIAMETER = 1.2  # arcsec
SUBPIXELS = 10
SIGMAS = (1.0, 2.0, 3.0)  # coverage is tabulated at these


def cosine(p: AnyFloat, t: AnyFloat) -> FloatArray:
    """Cosine similarity over the last two axes; 0 where one image is zero.

    Parameters
    ----------
    p, t : float (..., n_y, n_x)

    Returns
    -------
    float64 (...)
    """
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    norm = np.sqrt((p * p).sum((-2, -1)) * (t * t).sum((-2, -1)))
    return (p * t).sum((-2, -1)) / np.where(norm > 0, norm, np.inf)


def _window_mean(image: AnyFloat, size: int) -> FloatArray:
    return np.lib.stride_tricks.sliding_window_view(image, (size, size)).mean((-2, -1), dtype=np.float64)


def ssim(p: AnyFloat, t: AnyFloat) -> float:
    """Structural similarity of two images, each divided by its maximum (module docstring).

    Parameters
    ----------
    p, t : float (n_y, n_x)

    Returns
    -------
    float
        NaN where an image has no positive pixel.
    """
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    if p.max() <= 0 or t.max() <= 0:
        return float("nan")
    p, t = p / p.max(), t / t.max()
    n = SSIM_WINDOW**2
    mean_p, mean_t = _window_mean(p, SSIM_WINDOW), _window_mean(t, SSIM_WINDOW)
    unbiased = n / (n - 1)
    var_p = unbiased * (_window_mean(p * p, SSIM_WINDOW) - mean_p**2)
    var_t = unbiased * (_window_mean(t * t, SSIM_WINDOW) - mean_t**2)
    covariance = unbiased * (_window_mean(p * t, SSIM_WINDOW) - mean_p * mean_t)
    c_1, c_2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_p * mean_t + c_1) * (2 * covariance + c_2)
                  / ((mean_p**2 + mean_t**2 + c_1) * (var_p + var_t + c_2)))
    return float(similarity.mean())


def stamp(image: AnyFloat, center: AnyFloat, size: int = SSIM_STAMP) -> AnyFloat:
    """Cut a stamp centred on the pixel nearest to `center`; zero off the image.

    Parameters
    ----------
    image : float (..., n_y, n_x)
    center : float (2,) [pixel]
        (x, y).
    size : int [pixel]
        Odd.
    """
    x, y = (int(v) - size // 2 for v in np.rint(np.asarray(center)))
    return place(image, (-x, -y), (size, size))


def place(stamp: AnyFloat, corner: tuple[int, int], shape: tuple[int, int]) -> AnyFloat:
    """Put a stamp into an empty image; pixels off the image are cut.

    Parameters
    ----------
    stamp : float (..., h, w)
    corner : (int, int) [pixel]
        (x, y) of the stamp's first pixel on the image.
    shape : (int, int)
        (n_y, n_x) of the image.

    Returns
    -------
    float (..., n_y, n_x)
    """
    out = np.zeros((*stamp.shape[:-2], *shape), stamp.dtype)
    (x, y), (height, width) = corner, stamp.shape[-2:]
    y_0, y_1, x_0, x_1 = max(y, 0), min(y + height, shape[0]), max(x, 0), min(x + width, shape[1])
    if y_0 < y_1 and x_0 < x_1:
        out[..., y_0:y_1, x_0:x_1] = stamp[..., y_0 - y : y_1 - y, x_0 - x : x_1 - x]
    return out


def aperture_weights(shape: tuple[int, int], center: AnyFloat, radius: float) -> FloatArray:
    """Fraction of each pixel inside a circle.

    Parameters
    ----------
    shape : (int, int)
        (n_y, n_x).
    center : float (2,) [pixel]
        (x, y).
    radius : float [pixel]

    Returns
    -------
    float64 (n_y, n_x)
    """
    x, y = np.asarray(center, np.float64)
    sub = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5
    d_x = (np.arange(shape[1])[:, None] + sub - x).ravel()
    d_y = (np.arange(shape[0])[:, None] + sub - y).ravel()
    inside = d_y[:, None] ** 2 + d_x**2 <= radius**2
    return inside.reshape(shape[0], SUBPIXELS, shape[1], SUBPIXELS).mean((1, 3))


def blendedness(truth: AnyFloat) -> FloatArray:
    """Blendedness of every source of a scene in one band.

    Parameters
    ----------
    truth : float (n_source, n_y, n_x)

    Returns
    -------
    float64 (n_source,)
    """
    truth = np.asarray(truth, np.float64)
    field = truth.sum(0)
    return 1.0 - (truth * truth).sum((1, 2)) / (truth * field).sum((1, 2))


def isolated_error(truth: AnyFloat, flux: AnyFloat, sky_sigma: float, counts_per_njy: float) -> FloatArray:
    """Error of a source's flux in a band if the source were alone and its profile known.

    Parameters
    ----------
    truth : float (n_source, n_y, n_x) [nJy]
    flux : float (n_source,) [nJy]
    sky_sigma : float [nJy]
    counts_per_njy : float

    Returns
    -------
    float64 (n_source,) [nJy]
    """
    truth, flux = np.asarray(truth, np.float64), np.asarray(flux, np.float64)
    variance = sky_sigma**2 + np.maximum(truth, 0.0) / counts_per_njy
    return flux / np.sqrt((truth * truth / variance).sum((1, 2)))


def noise_floor(image: AnyFloat, variance: AnyFloat, truth: AnyFloat, flux: AnyFloat) -> tuple[FloatArray,
                                                                                                   FloatArray]:
    """Fluxes from the joint linear solve with the true profiles, in one band.

    Parameters
    ----------
    image, variance : float (n_y, n_x) [nJy, nJy^2]
    truth : float (n_source, n_y, n_x) [nJy]
    flux : float (n_source,) [nJy]

    Returns
    -------
    flux, error : float64 (n_source,) [nJy]
    """
    profiles = (np.asarray(truth, np.float64) / np.asarray(flux)[:, None, None]).reshape(len(truth), -1)
    weighted = profiles / np.asarray(variance, np.float64).ravel()
    covariance = np.linalg.inv(weighted @ profiles.T)
    return covariance @ (weighted @ np.asarray(image, np.float64).ravel()), np.sqrt(np.diag(covariance))


def color_error(flux: AnyFloat, true_flux: AnyFloat, blue: int, red: int) -> FloatArray:
    """|error| of the colour blue - red; NaN where a flux is not positive.

    Parameters
    ----------
    flux, true_flux : float (n_source, n_band)
    blue, red : int
        Band indices.

    Returns
    -------
    float64 (n_source,) [mag]
    """
    flux, true_flux = np.asarray(flux, np.float64), np.asarray(true_flux, np.float64)
    positive = (flux[:, blue] > 0) & (flux[:, red] > 0)
    ratio = np.where(positive, flux[:, blue], 1.0) / np.where(positive, flux[:, red], 1.0)
    error = np.abs(-2.5 * np.log10(ratio * true_flux[:, red] / true_flux[:, blue]))
    return np.where(positive, error, np.nan)


def coverage(pull: AnyFloat, k: AnyFloat) -> FloatArray:
    """Fraction of the finite pulls inside +-k; NaN where there is none.

    Parameters
    ----------
    pull : float (n,)
    k : float (m,)

    Returns
    -------
    float64 (m,)
    """
    pull = np.asarray(pull, np.float64)
    size = np.sort(np.abs(pull[np.isfinite(pull)]))
    if not len(size):
        return np.full(np.shape(k), np.nan)
    return np.searchsorted(size, np.asarray(k, np.float64), side="right") / len(size)


def gaussian_coverage(k: AnyFloat) -> FloatArray:
    """`coverage` of right, Gaussian errors, float64 (m,)."""
    return np.array([math.erf(value / math.sqrt(2)) for value in np.ravel(k)])


def pull_summary(pull: AnyFloat) -> dict[str, Any]:
    """Statistics of pulls, which are a unit Gaussian if the errors are right.

    Parameters
    ----------
    pull : float (n,)

    Returns
    -------
    dict
        ``n`` (finite pulls), ``mean``, ``median``, ``standard_deviation``, ``width``, ``beyond_3`` (fraction) and
        ``coverage`` at each of `SIGMAS`; NaN where there is no pull.
    """
    pull = np.asarray(pull, np.float64)
    used = pull[np.isfinite(pull)]
    inside = coverage(used, np.array(SIGMAS)).tolist()
    summary: dict[str, Any] = {"n": len(used), "mean": np.nan, "median": np.nan, "standard_deviation": np.nan,
                               "width": np.nan, "beyond_3": 1.0 - inside[-1], "coverage": inside}
    if len(used):
        summary |= {"mean": float(used.mean()), "median": float(np.median(used)),
                    "standard_deviation": float(used.std()), "width": float(1.4826 * np.median(np.abs(used)))}
    return summary


def pull_width(flux: AnyFloat, error: AnyFloat, true_flux: AnyFloat) -> list[float]:
    """Robust width of the pull in every band.

    Parameters
    ----------
    flux, error, true_flux : float (n_source, n_band)
    """
    pull = np.abs((np.asarray(flux, np.float64) - true_flux) / error)
    return [float(1.4826 * np.median(p[np.isfinite(p)])) if np.isfinite(p).any() else float("nan") for p in pull.T]
