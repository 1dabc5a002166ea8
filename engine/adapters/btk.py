r"""A deblender for the Blending ToolKit (BTK), so that BTK's metrics can compare this engine with other deblenders.

    from deblendrt.engine.adapters.btk import DeblendRt
    deblend_batch = DeblendRt(max_n_sources=10)(blend_batch)

BTK's pixels are electrons of a filter's full exposure, with the sky subtracted. A filter's zero point is the magnitude
of one electron per second. The AB magnitude of one electron is therefore

    zero_point = zeropoint + 2.5 log10(full_exposure_time / 1 s)

The noise has two parts. The variance of the sky is its mean level in electrons. The photon noise of the galaxies is
computed from the model of a first solution, and the scene is then solved again: noise computed from the noisy pixels
would bias fluxes. BTK is imported when `DeblendRt` is first used. It needs NumPy below 2.4, see docs/embedding/btk.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.units import AB_ZERO_POINT

if TYPE_CHECKING:
    from deblendrt.engine.deblender import Deblender
    from deblendrt.engine.result.result import DeblendResult

BTK_PSF_SIZE = 101  # pixel: fluxes are total fluxes, and a Kolmogorov PSF has 0.6% of its light outside 41 pixels
BTK_INSTALL = 'BTK is not there: pip install blending_toolkit "numpy<2.4", in an environment of its own'


def zero_points(survey: Any, bands: Sequence[str]) -> NDArray[np.float64]:
    """Return the AB magnitude of one electron in a survey's full exposures.

    Parameters
    ----------
    survey : btk.survey.Survey
    bands : sequence of str

    Returns
    -------
    float64 (n_band,) [mag]
    """
    filters = [survey.get_filter(band) for band in bands]
    return np.array([f.zeropoint.to_value("mag") + 2.5 * np.log10(f.full_exposure_time.to_value("s")) for f in filters])


def sky_variance(survey: Any, bands: Sequence[str]) -> NDArray[np.float64]:
    """Return the variance of the sky in a pixel, float64 (n_band,) [electron^2]: BTK's mean sky level."""
    from surveycodex.utilities import mean_sky_level

    return np.array([mean_sky_level(survey, survey.get_filter(band)).to_value("electron") for band in bands])


def draw_psfs(psfs: Sequence[Any], pixel_scale: float, size: int = BTK_PSF_SIZE) -> NDArray[np.float64]:
    """Draw the effective PSF images of a batch, with the survey's pixels and their response.

    `BlendBatch.get_numpy_psf` leaves the pixel scale to GalSim, whose choice is not the survey's.

    Parameters
    ----------
    psfs : sequence of galsim.GSObject
        The PSF of each band.
    pixel_scale : float [arcsec]
    size : int [pixel]
        Side of the images; an odd number.

    Returns
    -------
    float64 (n_band, size, size)

    Raises
    ------
    ValueError
        A PSF is an image, as in a batch that BTK read from a file. The size of its pixels is lost.
    """
    if any(not hasattr(psf, "drawImage") for psf in psfs):
        raise ValueError("blend_batch: expected PSFs as galsim objects, got images, whose pixel scale a batch read from"
                         " a file has lost; set blend_batch.psf to [survey.get_filter(band).psf for band in ...]")
    return np.stack([psf.drawImage(nx=size, ny=size, scale=pixel_scale).array for psf in psfs]).astype(np.float64)


def centers_of(catalog: Any, wcs: Any) -> NDArray[np.float64]:
    """Return the positions in a catalogue of BTK, float64 (n_source, 2) [pixel]: (x, y), 0-based.

    They come from the columns ``x_peak`` and ``y_peak``, or else from ``ra`` and ``dec`` [arcsec].
    """
    if "x_peak" in catalog.colnames and "y_peak" in catalog.colnames:
        x, y = catalog["x_peak"], catalog["y_peak"]
    elif "ra" in catalog.colnames and "dec" in catalog.colnames:
        x, y = wcs.world_to_pixel_values(np.asarray(catalog["ra"]) / 3600, np.asarray(catalog["dec"]) / 3600)
    else:
        raise ValueError(f"catalog: expected columns x_peak and y_peak, or ra and dec, got {catalog.colnames}")
    return np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])


def _build() -> type:
    """Return the class `DeblendRt`, whose base class is BTK's."""
    try:
        from btk.blend_batch import DeblendBatch, DeblendExample
        from btk.deblend import Deblender as BtkDeblender
    except (ImportError, AttributeError) as error:  # Astropy 6, which BTK pins, raises AttributeError with NumPy 2.4
        raise ImportError(f"{BTK_INSTALL} ({error})") from error

    class DeblendRt(BtkDeblender):
        """deblendrt as a deblender of BTK.

        Parameters
        ----------
        max_n_sources : int
            Number of sources that BTK's arrays hold; a scene with more raises.
        model : str or Deblender
            Name of a bundled model, a bundle's folder, or a loaded deblender. Its bands must include the survey's.
        detect : bool
            Find the sources (`deblendrt.engine.files.detection`, extra ``detect``) if no catalogue is given. By
            default the positions come from the truth catalogue, as in BTK's Scarlet.
        photon_noise : bool
            The images hold the photon noise of the galaxies (``add_noise="all"``). This takes two solutions.
        **options
            Options of `Deblender.deblend_batch`.
        """

        def __init__(self, max_n_sources: int, model: str | Deblender = "lsst", *, detect: bool = False,
                     photon_noise: bool = True, **options: Any) -> None:
            super().__init__(max_n_sources)
            if isinstance(model, str):
                from deblendrt.engine.deblender import Deblender

                model = Deblender.load(model)
            self.deblender = model
            self.detect = detect
            self.photon_noise = photon_noise
            self.options = options

        def deblend(self, ii: int, blend_batch: Any, reference_catalogs: Any = None) -> Any:
            """Deblend a scene, see `batch_call`, and return a ``DeblendExample``."""
            return self._solve([ii], blend_batch, reference_catalogs)[0]

        def batch_call(self, blend_batch: Any, njobs: int = 1, reference_catalogs: Any = None, **kwargs: Any) -> Any:
            """Deblend all scenes of a batch in one call of the engine. The results are the bits of single calls.

            Parameters
            ----------
            blend_batch : btk.blend_batch.BlendBatch
            njobs : int
                Threads.
            reference_catalogs : list of Table, optional
                Positions, a table per scene. Default: the positions of the truth catalogue, or of the detected sources.

            Returns
            -------
            btk.blend_batch.DeblendBatch
            """
            if kwargs:
                raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
            examples = self._solve(list(range(blend_batch.batch_size)), blend_batch, reference_catalogs, njobs)
            return DeblendBatch(
                blend_batch.batch_size, self.max_n_sources, [example.catalog for example in examples],
                len(blend_batch.survey.available_filters), blend_batch.image_size, None,
                np.array([example.deblended_images for example in examples]),
                [example.extra_data for example in examples])

        def _solve(self, scenes: list[int], batch: Any, reference_catalogs: Any, n_threads: int = 1) -> list[Any]:
            survey, bands = batch.survey, list(batch.survey.available_filters)
            scale = survey.pixel_scale.to_value("arcsec")
            sky = sky_variance(survey, bands)
            images = [np.asarray(batch.blend_images[k], np.float64) for k in scenes]
            if reference_catalogs is not None:
                centers = [centers_of(reference_catalogs[k], batch.wcs) for k in scenes]
            elif self.detect:
                from deblendrt.engine.files.detection import detect

                centers = [detect(image, sky) for image in images]
            else:
                centers = [centers_of(batch.catalog_list[k], batch.wcs) for k in scenes]
            for k, positions in zip(scenes, centers, strict=True):
                if len(positions) > self.max_n_sources:
                    raise ValueError(f"max_n_sources: expected at least {len(positions)}, the sources of scene {k}, "
                                     f"got {self.max_n_sources}")
            points = zero_points(survey, bands)
            electrons = 10 ** ((points - AB_ZERO_POINT) / 2.5)  # electrons per nJy
            psf = dict(zip(bands, draw_psfs(batch.psf, scale), strict=True))
            arguments = {"bands": bands, "psf": psf, "zero_point": dict(zip(bands, points, strict=True)),
                         "pixel_scale": scale, "n_threads": n_threads, **self.options}
            variance = [np.broadcast_to(sky[:, None, None], image.shape) for image in images]
            result = self.deblender.deblend_batch(images, centers, variance=variance, **arguments)
            own = [result.bands.index(band) for band in bands]
            if self.photon_noise:
                variance = [v + np.maximum(result.model(i)[own], 0) * electrons[:, None, None]
                            for i, v in enumerate(variance)]
                result = self.deblender.deblend_batch(images, centers, variance=variance, **arguments)
            return [self._example(result, i, batch, bands, electrons) for i in range(len(scenes))]

        def _example(self, result: DeblendResult, i: int, batch: Any, bands: list[str],
                     electrons: NDArray[np.float64]) -> Any:
            from astropy.table import Table

            rows, own = result.sources(i), [result.bands.index(band) for band in bands]
            fitted, size = result.fitted[rows], batch.image_size
            position = np.where(fitted[:, None], result.position[rows], result.center[rows])
            images = np.zeros((self.max_n_sources, len(bands), size, size))
            for j, row in enumerate(range(rows.start, rows.stop)):
                stamp, (x, y) = result.stamps(row)
                x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + stamp.shape[2], size), min(y + stamp.shape[1], size)
                if x0 < x1 and y0 < y1:
                    images[j, :, y0:y1, x0:x1] = stamp[own, y0 - y:y1 - y, x0 - x:x1 - x] * electrons[:, None, None]
            catalog = Table()
            ra, dec = batch.wcs.pixel_to_world_values(position[:, 0], position[:, 1])
            catalog["ra"] = ((np.asarray(ra) + 180) % 360 - 180) * 3600  # arcsec from the centre
            catalog["dec"] = np.asarray(dec) * 3600
            catalog["x_peak"], catalog["y_peak"] = position[:, 0], position[:, 1]
            catalog["flags"] = result.flags[rows]
            for b, band in enumerate(bands):  # electrons
                catalog[f"flux_{band}"] = result.flux[rows, own[b]] * electrons[b]
                catalog[f"flux_err_{band}"] = result.flux_err[rows, own[b]] * electrons[b]
            # BTK's metrics refuse negative pixels; the models' negative pixels are far below the noise.
            return DeblendExample(self.max_n_sources, catalog, len(bands), size, None, images.clip(0),
                                  {"n_fitted": int(fitted.sum())})

    DeblendRt.__module__, DeblendRt.__qualname__ = __name__, "DeblendRt"  # BTK's workers look it up here
    return DeblendRt


def __getattr__(name: str) -> Any:
    if name != "DeblendRt":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _build()
    return globals()[name]
