"""The deblender: load a model once, then give it batches of scenes.

Scenes that share a PSF are grouped and cut into chunks of a bounded number of sources. One thread solves a chunk. A
source's result does not depend on the chunk that the source is in.
"""

from __future__ import annotations

import collections
import concurrent.futures
import ctypes
import dataclasses
import functools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.cuda.driver import interop
from deblendrt.cuda.driver.device import DeviceArray, DeviceError, OutOfDeviceMemory
from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.folding import fold_bundle, window_side
from deblendrt.engine.measure import fitted_sky, star_or_galaxy
from deblendrt.engine.measure.measurements import record
from deblendrt.engine.model.bundle import Bundle, load_bundle
from deblendrt.engine.model.networks import Runtime
from deblendrt.engine.model.onnxruntime_cpu import OrtRuntime
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.result.rows import Rows, empty_chi2
from deblendrt.engine.scene.batches import FOLDED_TABLES, Chunk, Memory, divide_into_chunks
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.scene.patches import Part
from deblendrt.engine.scene.psf.images import psf_key
from deblendrt.engine.scene.scene import Scene, make_scenes, with_sources, with_stars
from deblendrt.engine.scene.settings import Settings, check_yes_or_no, checked_settings
from deblendrt.engine.solve import constants, descent, unlisted
from deblendrt.engine.solve.detail import solve_detail
from deblendrt.engine.solve.start import build_problem, start_latents

if TYPE_CHECKING:
    from deblendrt.engine.compute.cuda.streams import DevicePool, SharedDevice

FOLDED_POOL = 1e9  # bytes of folded bases that are kept for a next use: 5 PSFs of the LSST model, 175-195 MB each
POOL_SHARE = 0.25  # of `memory_limit`: largest part that folded bases take that are not at work


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's function that returns freed memory to the system; None for another C library."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return None
    return found


def _return_freed_memory() -> None:
    """Return freed memory to the system; glibc keeps it. 14 PSFs one after the other held 800 MB, and with this 290."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class Deblender:
    """A loaded model.

    Thread-safe: several threads may call `deblend_batch`; results do not depend on that.

    Parameters
    ----------
    bundle : Bundle
    runtime : Runtime
    pool : DevicePool, optional
        Streams of the GPU that computes. Default: the CPU computes.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, pool: DevicePool | None = None) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.pool = pool
        self._folded: collections.OrderedDict[str, FoldedBasis] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.pool is not None:  # a spawned worker opens the device itself
            return partial(type(self).load, device=self.pool.name), (self.bundle.path,)
        return type(self), (self.bundle, self.runtime)  # locks do not pickle; a spawned worker folds for itself

    @classmethod
    def load(cls, model: str | Path = "lsst", *, device: str = "cpu", stream: Any = None,
             runtime: str = "kernels") -> Deblender:
        """Load a model bundle.

        Parameters
        ----------
        model : str or Path
            Name of a bundled model, or a bundle's folder.
        device : str
            "cpu", "cuda" (the first GPU) or "cuda:1" (the second).
        stream : optional
            The caller's CUDA stream, which then does all work: its handle, or a stream of CuPy, torch or PyCUDA.
            Default: the deblender opens its own streams.
        runtime : {"kernels", "onnxruntime", "tensorrt"}
            Software that runs the model's graphs on a GPU: the engine's own kernels, ONNX Runtime's CUDA provider, or
            TensorRT.

        Returns
        -------
        Deblender

        Raises
        ------
        ValueError
            Unknown device.
        DeviceError
            No usable GPU, driver or compiler. The message says what is missing, and the command that mends it. A
            deblender for a GPU never falls back to the CPU.
        BundleError
            The bundle is damaged, incomplete or of a newer format.
        """
        name, _, ordinal = device.partition(":") if isinstance(device, str) else ("", "", "")
        if name not in ("cpu", "cuda") or (ordinal and (name == "cpu" or not ordinal.isdecimal())):
            raise ValueError(f'device: expected "cpu", "cuda" or "cuda:N", got {device!r}')
        if name == "cpu" and stream is not None:
            raise ValueError('stream: expected None with device="cpu"')
        bundle = load_bundle(model)
        if name == "cpu":
            return cls(bundle, OrtRuntime(bundle))
        from deblendrt.cuda.driver.cuda_device import open_device
        from deblendrt.engine.compute.cuda.streams import STREAMS, DevicePool, device_runtime

        pool = DevicePool.open(bundle, partial(open_device, int(ordinal or 0), stream),
                               1 if stream is not None else STREAMS, name=device, runtime=device_runtime(runtime))
        return cls(bundle, OrtRuntime(bundle), pool)

    @property
    def window(self) -> int:
        """Side of a source's window [pixel]; the few extended sources have a larger window."""
        return window_side(self.bundle)

    def warmup(self, n_sources: int = drawing.TILE) -> None:
        """Create sessions, fold the nominal PSF and run once, so that the first real call is as fast as the rest.

        Parameters
        ----------
        n_sources : int
            Checked, but without effect: the CPU engine works in tiles of one size, and a GPU's buffers of a padded size
            are made when a batch of that size first comes.
        """
        if n_sources < 1:
            raise ValueError(f"n_sources: expected at least 1, got {n_sources}")
        size = self.window
        sigma = np.asarray(self.bundle.sky_sigma)
        image = np.zeros((len(self.bundle.bands), size, size), np.float32)
        self.deblend_batch(image, [(size // 2, size // 2)], variance=sigma**2, psf="nominal", n_iteration=1)

    def device(self, memory_limit: float | None = None) -> SharedDevice | None:
        """Return a share of the device that problems compute on; None on the CPU."""
        return None if self.pool is None else self.pool.share(memory_limit)

    def fold(self, images: NDArray[np.float64] | None) -> FoldedBasis:
        """Return the basis folded with PSF images, from a cache.

        Parameters
        ----------
        images : float64 (n_band, q, q), optional
            Default: the model's nominal PSFs.

        Returns
        -------
        FoldedBasis
        """
        images = np.asarray(self.bundle.psf, np.float64) if images is None else images
        key = psf_key(images)
        with self._lock:
            if key in self._folded:
                self._folded.move_to_end(key)
                return self._folded[key]
        folded = fold_bundle(self.bundle, images)
        with self._lock:
            self._folded[key] = folded
        self._trim(FOLDED_POOL)
        return folded

    def _trim(self, limit: float) -> None:
        """Drop the folded bases that were not used for longest, until the pool is within a limit [byte] or has one."""
        with self._lock:
            size = {key: FOLDED_TABLES * (basis.whole or basis).phi.nbytes for key, basis in self._folded.items()}
            dropped = 0
            while sum(size.values()) > limit and len(size) > 1:
                size.pop(self._folded.popitem(last=False)[0])
                dropped += 1
        if dropped:
            _return_freed_memory()

    def deblend_batch(self, cutouts: Any, centers: Any, *, variance: Any = None, mask: Any = None, psf: Any = None,
                      bands: Any = None, kind: Any = None, background: Any = None, zero_point: Any = None,
                      pixel_scale: Any = None, wcs: Any = None,
                      solver: str = "gauss_newton", n_iteration: int | None = None, start: str = "encoder",
                      robust: bool = True, detail: bool = True, sky: str = "subtracted",
                      center_sigma: float = constants.CENTER_SIGMA, aperture_diameter: float = 1.2,
                      find_missed: bool = False, star_fraction: float = 0.1, zeros: str = "missing", n_threads: int = 1,
                      memory_limit: float | None = None) -> DeblendResult:
        """Separate the sources of one scene or of many.

        Parameters
        ----------
        cutouts : number (n_band, n_y, n_x), (n_scene, n_band, n_y, n_x), or a sequence of images
            Images of any sizes [nJy; or Quantities; or counts with `zero_point`]. NaN pixels are dropped. With a GPU,
            this argument and those below may be arrays of CuPy, torch or PyCUDA in its memory. An image may also be a
            CCDData or another NDData, whose unit, mask, uncertainty, PSF and WCS are used, a Cutout2D, an xarray
            DataArray, a dict {band: image}, or a list with one of these for each band.
        centers : float (n_source, 2) [pixel], or a sequence of such arrays, nested like `cutouts`
            (x, y), 0-based, integer = pixel centre. Or a table (astropy, pandas, a dict of columns), whose columns are
            found by name, or a SkyCoord; positions on the sky need a WCS.
        variance : float, optional
            Total variance, in squared image units: a number, (n_band,), or like a cutout, or an astropy uncertainty.
            Default: the variance of the sky, estimated from the image; the sources are flagged. If the image has a unit
            of flux density, the variance needs a unit too.
        mask : bool (n_y, n_x) or (n_band, n_y, n_x), optional
            True means bad.
        psf : optional
            Effective PSFs, the pixel included, for all scenes or one entry per scene: images (n_band, q, q), or a
            sequence or a dict by band of images, FWHM in arcsec, FITS or PSFEx files, or models of Piff, photutils,
            astropy or GalSim; or one of these for all bands. Where the PSF varies over an image, also a `CellPsf`, or a
            callable (x, y) -> images. A FWHM stands for a Kolmogorov profile. "nominal" means the model's nominal PSFs.
            With None they are used too, with an `InputWarning` and the flag PSF_NOMINAL. Even-sized images, and images
            off centre, are moved to the PSF's centroid, with an `InputWarning`.
        bands : str or sequence of str, optional
            Names of the cutouts' bands. Default: all bands of the model. The prior fills in absent bands.
        kind : str, or sequence of str (n_source,), optional
            "galaxy", "star" (a point source) or "auto", for all sources or for each, nested like `centers`. Default:
            galaxies. "auto" sources are fitted as both kinds, and a `star_probability` above 0.5 makes a source a star.
            This takes about twice the time, three times if all scenes have stars.
        background : float, optional
            Subtracted from the image: a number, (n_band,), or like a cutout.
        zero_point : float, optional [AB mag of one image unit]
            Zero point of an image in counts, or one for each band.
        pixel_scale : float or Quantity, optional [arcsec]
            Pixel scale of the images, checked against the model's.
        wcs : astropy.wcs.WCS, optional
            WCS of the images, for all scenes or a list with one for each; it converts positions on the sky, and its
            pixel scale is checked against the model's.
        solver : {"gauss_newton", "adam"}
        n_iteration : int, optional
            Number of iterations of all blends. Default: 8 (Gauss-Newton) or 200 (Adam). Blends that still move after
            Gauss-Newton's iterations get more, at most five times this number.
        start : {"encoder", "linear"}
            First shapes: those of the deblending encoder, or the prior's mean. The prior's mean also serves where
            much of the encoder's cutout is masked on both sides of the centre. The first fluxes come from a joint
            linear solve.
        robust : bool
            True bounds the influence of flux that no listed source explains, and fits bright unlisted sources too.
            They stay out of the result. In images that are solved in parts they are not fitted: use `find_missed`
            there. False gives the plain chi-square with the listed sources alone.
        detail : bool
            True gives bright galaxies structure that the model's decoder cannot draw, in fluxes, errors and images, see
            `deblendrt.engine.solve.detail`. It needs a bundle with modes of detail, see
            `Bundle.detail_shared`: both shipped bundles have them. False gives the decoder's galaxies, and the
            published objective together with `robust=False`. A GPU with such a bundle needs False.
        sky : {"subtracted", "fit"}
            "subtracted" takes images without a sky. "fit" fits a constant per band and scene along with the sources,
            see `deblendrt.engine.measure.fitted_sky`. The result's `sky` has the constants; errors include their
            uncertainty; residuals and shares of light are those of the image without the sky. A band of a scene with
            fewer than about a thousand pixels without light is not fitted, and its `sky_err` is NaN. "fit" takes up to
            twice the time. It needs device="cpu", and images of at most 1200 pixels on a side.
        center_sigma : float [pixel]
            Standard deviation of the prior on a source's position around the given centre, per axis.
        aperture_diameter : float [arcsec]
            Diameter of the circle for the result's `aperture_flux`.
        find_missed : bool
            Look for peaks in the residual, add them as sources of kind "auto", and solve once more. Found sources
            follow the listed sources of their scene and have the flag FOUND. Scenes with such peaks take twice the
            time.
        star_fraction : float
            Prior probability that an "auto" source is a star, between 0 and 1.
        zeros : {"missing", "data"}
            "missing" takes connected regions of at least 16 pixels that are exactly zero, in an otherwise noisy image,
            as pixels without data: they are masked, with an `InputWarning` and the flag ZERO_PIXELS. "data" keeps them.
        n_threads : int
            Number of chunks that are solved at a time. Results do not depend on it.
        memory_limit : float, optional [byte]
            Limit of the memory at work, beside the images and the result; with a GPU, of the GPU's memory. A small
            limit lets fewer sources be solved at a time. Results do not depend on it. The deblender keeps the tables of
            PSFs for a next call: up to a quarter of this limit, at most 1 GB, at least those of one PSF.

        Returns
        -------
        DeblendResult
            One row per source, in the caller's order. Every source has a row; `flags` tell what went wrong.

        Raises
        ------
        ValueError
            A mistake in the arguments; the message names the argument, what was expected and what came.

        Notes
        -----
        Arguments about images are given once for all scenes, or in a list with an entry for each scene. A dict
        {band: entry} has an entry for each band. Entries that may belong to the scenes as well as to the bands, since
        there are as many scenes as bands, are an error. Only an array (n_band,), or (n_band, q, q) of PSFs, then
        belongs to the bands, with a warning.
        """
        check_yes_or_no(find_missed, "find_missed")
        settings = checked_settings(solver, n_iteration, start, robust, detail, sky, center_sigma, aperture_diameter,
                                    star_fraction, n_threads, memory_limit, iterations=constants.ITERATIONS)
        if settings.detail and self.pool is not None and len(self.bundle.detail_shared):
            raise ValueError('detail: expected False with device="cuda": detail is not solved for on a GPU yet')
        if settings.sky == "fit" and self.pool is not None:
            raise ValueError('sky: expected "subtracted" with device="cuda": a sky is not fitted on a GPU yet')
        cutouts, variance, mask, psf, background = (
            self._on_host(name, value) for name, value in (
                ("cutouts", cutouts), ("variance", variance), ("mask", mask), ("psf", psf), ("background", background)))
        scenes = make_scenes(cutouts, centers, bundle_bands=self.bundle.bands,
                             bundle_pixel_scale=self.bundle.pixel_scale, window_half=self.window // 2, bands=bands,
                             variance=variance, mask=mask, psf=psf, background=background, zero_point=zero_point,
                             pixel_scale=pixel_scale, kind=kind, wcs=wcs, bundle_sky_sigma=self.bundle.sky_sigma,
                             bundle_psf_fwhm=self.bundle.psf_fwhm.tolist(), zeros=zeros)
        rows = self._with_kinds(self.solve_scenes(scenes, settings), settings)
        if find_missed:  # after the kinds: a bright star fitted as a galaxy leaves rings
            peaks = [rows.residual_peaks(k)[:, :2] for k in range(len(scenes))]
            if any(len(p) for p in peaks):
                scenes = [with_sources(s, p, self.window // 2) for s, p in zip(rows.scenes, peaks, strict=True)]
                before, rows = rows, self.solve_scenes(scenes, settings, rows)
                rows.star_probability[(rows.flags & Flag.FOUND) == 0] = before.star_probability
                rows = self._with_kinds(rows, settings, Flag.FOUND)
        return DeblendResult.of_rows(rows)

    def _on_host(self, name: str, value: Any) -> Any:
        """Copy the arrays of an argument from the GPU to the host, where scenes are checked."""
        if isinstance(value, list | tuple):
            return [self._on_host(name, part) for part in value]
        if isinstance(value, dict):
            return {band: self._on_host(name, part) for band, part in value.items()}
        if not interop.is_on_device(value):
            return value
        if self.pool is None:
            raise ValueError(f'{name}: expected arrays on the host with device="cpu", got one on a GPU')
        with self.pool.stream() as device:
            return device.device.download(interop.adopt_array(device.device, value, name=name))

    def model_on_device(self, result: DeblendResult, i_scene: int) -> DeviceArray:
        """Draw the model image of a scene on the GPU, and leave it there.

        Parameters
        ----------
        result : DeblendResult
            A result of this deblender.
        i_scene : int

        Returns
        -------
        DeviceArray
            float32 (n_band, n_y, n_x) [nJy]; CuPy, torch and others take it without a copy, by DLPack or
            ``__cuda_array_interface__``.

        Raises
        ------
        DeviceError
            The deblender is on the CPU: `result.model` is there.
        """
        if self.pool is None:
            raise DeviceError('model_on_device: this deblender is on the CPU; use result.model, or device="cuda"')
        scene, rows = result.scenes[i_scene], np.arange(result.n_source)[result.sources(i_scene)]
        rows = rows[result.fitted[rows]]
        with self.pool.stream() as device:
            if not len(rows):
                return device.device.upload(np.zeros(scene.images.shape, np.float32))
            folded = result.folded.basis(result.folded_index[rows])
            problem, _ = build_problem([scene], folded, self.runtime, self.bundle, center_sigma=1.0, robust=False,
                                       device=device)
            problem = dataclasses.replace(problem, extent=result.extent[rows])
            return device.model_image(problem, result.coefficients[rows])

    def _with_kinds(self, rows: Rows, settings: Settings, flag: int = 0) -> Rows:
        """Find the kinds of the "auto" sources that have `flag`, and solve scenes with new stars again."""
        auto = np.concatenate([np.zeros(0, bool), *[s.auto for s in rows.scenes]]) & rows.fitted
        chosen = np.flatnonzero(auto & ((rows.flags & flag) == flag))
        if not len(chosen):
            return rows
        probability = rows.star_probability.copy()
        probability[chosen] = star_or_galaxy.star_probability(
            rows, chosen, self.runtime, self.bundle, self.device(settings.memory_limit),
            n_threads=settings.n_threads, center_sigma=settings.center_sigma, star_fraction=settings.star_fraction)
        scenes = [with_stars(s, probability[rows.sources(k)] > 0.5) for k, s in enumerate(rows.scenes)]
        rows = self.solve_scenes(scenes, settings, rows)
        rows.star_probability[:] = probability
        return rows

    def solve_scenes(self, scenes: list[Scene], settings: Settings, before: Rows | None = None) -> Rows:
        """Solve checked scenes. Rows of scenes that `before` has solved already are copied."""
        rows = Rows.empty(scenes, self.bundle, self.fold, settings)
        same = [i for i, scene in enumerate(scenes) if before is not None and before.scenes[i] is scene]
        if before is not None:
            rows.adopt_scenes(same, before, same)
        new = sorted(set(range(len(scenes))) - set(same))
        on_host = self.pool is None
        memory = self._memory(settings.memory_limit if on_host else None)
        first = rows.source_start[:-1]
        psf = np.where(first < rows.source_start[1:], np.append(rows.folded_index, 0)[first], -1)
        chunks = divide_into_chunks(scenes, psf, new, settings.n_threads if on_host else 1, memory)
        if settings.sky == "fit":
            count = collections.Counter(chunk.members[0] for chunk in chunks if chunk.part is not None)
            for i, n_part in count.items():
                if n_part > 1:
                    raise ValueError(f"sky: expected 'subtracted' for an image that is solved in parts, got 'fit' with "
                                     f"scene {i} of {scenes[i].shape[1]} x {scenes[i].shape[0]} pixels")
        n_worker = min(settings.n_threads, memory.most_workers(chunks, scenes))
        totals = {chunk.members[0]: np.zeros(2) for chunk in chunks if chunk.part is not None}

        def run(chunk: Chunk) -> NDArray[np.float64]:
            """Solve a chunk. Return chi2 and objective if the chunk is a part of a scene, else zeros."""
            if settings.memory_limit is not None:
                self._trim(POOL_SHARE * settings.memory_limit)
            if chunk.part is None:
                self._solve_chunk(rows, chunk.members, settings)
                return np.zeros(2)
            alone = Rows.empty([chunk.part.scene], self.bundle, self.fold, settings)
            self._solve_chunk(alone, [0], settings, chunk.part)
            rows.adopt_part(chunk.members[0], chunk.part, alone)
            return np.array([alone.scene_chi2[0], alone.objective[0]])

        with concurrent.futures.ThreadPoolExecutor(n_worker) as pool:
            fitting = partial(self._in_halves, run)
            each = map(fitting, chunks) if n_worker == 1 else pool.map(fitting, chunks)
            for chunk, total in zip(chunks, each, strict=True):
                if chunk.part is not None:  # in the order of the parts: the same bits whichever was first
                    totals[chunk.members[0]] += total
        if settings.memory_limit is not None:
            self._trim(POOL_SHARE * settings.memory_limit)
        for i, total in totals.items():
            rows.scene_chi2[i], rows.objective[i] = total
        return rows

    def _memory(self, limit: float | None) -> Memory:
        """Return what `divide` must know of the memory that solving takes on the host, and the limit."""
        if limit is None:
            return Memory(len(self.bundle.bands), 0, 0)
        n_band = len(self.bundle.bands)
        return Memory(n_band, 2 * (self.window // 2), 4 * n_band * self.bundle.n_basis * self.window**2, limit)

    def _in_halves(self, run: Callable[[Chunk], NDArray[np.float64]], chunk: Chunk) -> NDArray[np.float64]:
        """Run a chunk. Run its halves if the device's memory does not hold the whole."""
        try:
            return run(chunk)
        except OutOfDeviceMemory as error:
            assert self.pool is not None
            self.pool.clear()  # buffers of earlier chunks may fill the memory
            too_large = str(error)  # the error itself holds on to the memory that it failed with
        middle = len(chunk.members) // 2
        if middle:
            for members in (chunk.members[:middle], chunk.members[middle:]):
                self._in_halves(run, Chunk(members))
            return np.zeros(2)
        try:
            return run(chunk)
        except OutOfDeviceMemory:
            i = chunk.members[0]
            raise OutOfDeviceMemory(f"scene {i} is too large for the device: {too_large}") from None

    def _solve_chunk(self, rows: Rows, members: list[int], settings: Settings, part: Part | None = None,
                     search: bool = True) -> None:
        """Solve some scenes, or the only scene that is a `part` of an image, and write their rows.

        With `search`, bright unlisted sources are fitted too.
        """
        members = [i for i in members if (rows.scenes[i].flags & NOT_FITTED == 0).any()]
        if not members:
            if part is not None:
                rows.scene_chi2[0] = empty_chi2(part.scene, part.area)
                rows.objective[0] = 0.5 * rows.scene_chi2[0]
            return
        scenes = [rows.scenes[i] for i in members]
        every = rows.of_scenes(members)
        fitted = every[(rows.flags[every] & NOT_FITTED) == 0]
        folded = rows.folded.basis(rows.folded_index[fitted])
        present = np.array([rows.scenes[k].band_present for k in rows.scene_index[fitted].tolist()])
        for group, basis in folded.groups(len(fitted)):
            rows.flag(fitted[group], Flag.PSF_TOO_NARROW, (basis.narrow & present[group]).any(1))
        problem, per_scene = build_problem(
            scenes, folded, self.runtime, self.bundle, center_sigma=settings.center_sigma, robust=settings.robust,
            part=part, device=self.device(settings.memory_limit))
        start = partial(start_latents, start=settings.start)
        descend = partial(descent.solve, solver=settings.solver, n_iteration=settings.n_iteration)
        sky = None
        if settings.sky == "fit":
            sky = fitted_sky.fit(problem, start, descend)
            problem = fitted_sky.without(problem, sky)
        problem, latent, floor = start(problem)
        # No search in parts of a patch: among hundreds of sources one starts so badly that it leaves a peak, and every
        # part would be solved twice.
        search = search and settings.robust and (part is None or bool(part.own.all()))
        found = unlisted.peaks(scenes, problem, latent) if search else []
        solution = descend(problem, latent, floor)
        detail = solve_detail(solution.problem, solution, sky=sky is not None) if settings.detail else None
        solution = record(rows, members, per_scene, solution, detail, sky)
        if settings.robust:
            for i, places in zip(members, unlisted.left(scenes, solution), strict=True):
                self._flag_near(rows, i, places)
        lacking = {i: peaks for i, peaks in zip(members, found, strict=False) if len(peaks)}
        if lacking:
            self._with_unlisted(rows, lacking, part, settings)

    def _with_unlisted(self, rows: Rows, peaks: dict[int, NDArray[np.float64]], part: Part | None,
                       settings: Settings) -> None:
        """Solve scenes once more with their unlisted sources. Keep the new rows where the objective falls enough."""
        more = [unlisted.with_peaks(rows.scenes[i], found, self.window // 2, part) for i, found in peaks.items()]
        again = Rows.empty([scene for scene, _ in more], self.bundle, self.fold, settings)
        self._solve_chunk(again, list(range(len(more))), settings, more[0][1], search=False)
        for k, (i, found) in enumerate(peaks.items()):
            if again.objective[k] < rows.objective[i] - constants.UNLISTED_GAIN * len(found):
                rows.forget_blends(i)
                rows.adopt_scenes([i], again, [k])
                self._flag_near(rows, i, again.center[again.sources(k)][-len(found):])

    def _flag_near(self, rows: Rows, i_scene: int, places: NDArray[np.float64]) -> None:
        """Flag the sources of a scene that are near peaks of the residual."""
        rows.flag_near(i_scene, places, constants.PEAK_NEAR, self.bundle.pixel_scale, Flag.NEAR_RESIDUAL_PEAK)
