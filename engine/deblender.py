"""The deblender: load a model once, then give it batches of scenes.

Scenes that share a PSF are grouped and cut into chunks of a bounded number of sources; a chunk is solved on one
thread. Nothing of a source's result depends on the chunk it is in.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import numbers
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine import ops, psf, solver
from deblendrt.engine.bundle import Bundle, load_bundle
from deblendrt.engine.flags import NOT_FITTED, Flag
from deblendrt.engine.psf import FoldedBasis
from deblendrt.engine.record import record
from deblendrt.engine.result import DeblendResult
from deblendrt.engine.runtime import Runtime
from deblendrt.engine.runtime_ort import OrtRuntime
from deblendrt.engine.scene import Scene, make_scenes, with_sources
from deblendrt.engine.start import build_problem, start_latents

PAD = 5  # pixel around the stamp for light that the PSF spreads; the kernel itself is not cut
CHUNK = 512  # sources solved together: about 25 kB each, and a tile's matrix products are full
FOLDED_CACHE = 16  # folded bases kept, 25 MB each at 6 bands of 63 x 63 pixels


@dataclasses.dataclass(frozen=True)
class _Settings:
    solver: str
    n_iteration: int
    start: str
    robust: bool
    center_sigma: float
    aperture_diameter: float


def window(bundle: Bundle) -> int:
    """Side of the window of a source without outskirts [pixel]."""
    return bundle.stamp_size + (0 if bundle.outskirts.size else 2 * PAD)


def fold_bundle(bundle: Bundle, images: NDArray[np.float64]) -> FoldedBasis:
    """A bundle's basis folded with PSF images (n_band, q, q), as every result of that bundle uses it."""
    return psf.fold(bundle.full_basis, images, bundle.reference_psf_sigma, PAD, window=window(bundle),
                    binning=bundle.outskirts_binning)


class Deblender:
    """A loaded model.

    Thread-safe: `deblend_batch` may be called from several threads; results do not depend on how.

    Parameters
    ----------
    bundle : Bundle
    runtime : Runtime
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self._folded: collections.OrderedDict[str, FoldedBasis] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Deblender], tuple[Bundle, Runtime]]:
        return type(self), (self.bundle, self.runtime)  # locks do not pickle; a spawned worker folds for itself

    @classmethod
    def load(cls, model: str | Path = "lsst", *, device: str = "cpu") -> Deblender:
        """Load a model bundle.

        Parameters
        ----------
        model : str or Path
            Name of a bundled model, or a bundle's folder.
        device : {"cpu"}

        Returns
        -------
        Deblender

        Raises
        ------
        ValueError
            Unknown device.
        NotImplementedError
            ``device="cuda"``: this version has no GPU engine.
        BundleError
            The bundle is damaged, incomplete or of a newer format.
        """
        if device == "cuda":
            raise NotImplementedError('device="cuda": this version has no GPU engine yet; use device="cpu"')
        if device != "cpu":
            raise ValueError(f'device: expected "cpu", got {device!r}')
        bundle = load_bundle(model)
        return cls(bundle, OrtRuntime(bundle))

    @property
    def window(self) -> int:
        """Side of a source's window [pixel]; the few that are extended have a larger one."""
        return window(self.bundle)

    def warmup(self, n_sources: int = ops.TILE) -> None:
        """Create sessions, fold the nominal PSF and run once, so that the first real call is as fast as the rest.

        Parameters
        ----------
        n_sources : int
            Accepted for symmetry with devices that allocate ahead; the CPU engine needs one tile whatever it is.
        """
        if n_sources < 1:
            raise ValueError(f"n_sources: expected at least 1, got {n_sources}")
        size = self.window
        sigma = np.asarray(self.bundle.sky_sigma)
        image = np.zeros((len(self.bundle.bands), size, size), np.float32)
        self.deblend_batch(image, [(size // 2, size // 2)], variance=sigma**2, n_iteration=1)

    def fold(self, images: NDArray[np.float64] | None) -> FoldedBasis:
        """The basis folded with PSF images (None: the nominal ones), from a cache.

        Parameters
        ----------
        images : float64 (n_band, q, q), optional

        Returns
        -------
        FoldedBasis
        """
        images = np.asarray(self.bundle.psf, np.float64) if images is None else images
        key = psf.psf_key(images)
        with self._lock:
            if key in self._folded:
                self._folded.move_to_end(key)
                return self._folded[key]
        folded = fold_bundle(self.bundle, images)
        with self._lock:
            self._folded[key] = folded
            while len(self._folded) > FOLDED_CACHE:
                self._folded.popitem(last=False)
        return folded

    def deblend_batch(self, cutouts: Any, centers: Any, *, variance: Any = None, mask: Any = None, psf: Any = None,
                      bands: Any = None, kind: Any = None, background: Any = None, zero_point: Any = None,
                      pixel_scale: Any = None,
                      solver: str = "gauss_newton", n_iteration: int | None = None, start: str = "encoder",
                      robust: bool = True, center_sigma: float = 0.2, aperture_diameter: float = 1.2,
                      find_missed: bool = False, n_threads: int = 1) -> DeblendResult:
        """Separate the sources of one scene or of many.

        Parameters
        ----------
        cutouts : number (n_band, n_y, n_x), (n_scene, n_band, n_y, n_x), or a sequence of the former
            Images [nJy unless Quantities or `zero_point`], of any sizes; NaN pixels are dropped.
        centers : float (n_source, 2) [pixel], or a sequence of such, nested like `cutouts`
            (x, y), 0-based, integer = pixel centre.
        variance : float, optional
            Total variance, in squared image units: a number, (n_band,), or like a cutout. Default: the sky's,
            estimated from the image and flagged.
        mask : bool (n_y, n_x) or (n_band, n_y, n_x), optional
            True means bad.
        psf : float (n_band, q, q), optional
            Effective PSF images, for all scenes or one per scene. Default: the model's nominal ones.
        bands : str or sequence of str, optional
            Names of the cutouts' bands. Default: all the model's. Bands that are absent are filled in by the prior.
        kind : str, or sequence of str (n_source,), optional
            "galaxy" or "star" (a point source), for all sources or for each, nested like `centers`. Default: galaxies.
        background : float, optional
            Subtracted from the image.
        zero_point : float, optional [AB mag of one image unit]
            The image is in counts.
        pixel_scale : float or Quantity, optional [arcsec]
            Checked against the model's.
        solver : {"gauss_newton", "adam"}
        n_iteration : int, optional
            Always run in full. Default 15 (Gauss-Newton) or 200 (Adam).
        start : {"encoder", "linear"}
            Shapes from the deblending encoder, or at the prior's mean (as the encoder's are where a band is missing or
            much of the cutout is masked); fluxes by a joint linear solve in both cases.
        robust : bool
            Bound the influence of flux that no listed source explains; False gives the plain chi-square.
        center_sigma : float [pixel]
            Standard deviation of the prior on a source's position around the given centre, per axis.
        aperture_diameter : float [arcsec]
            Of the result's `aperture_flux`.
        find_missed : bool
            Look for peaks in the residual, add them as galaxies and solve once more. They come after the listed
            sources of their scene, with the flag FOUND. Takes twice the time where there are any.
        n_threads : int
            Chunks solved at a time. Results do not depend on it.

        Returns
        -------
        DeblendResult
            One row per source, in the caller's order, whatever happened to it; see its `flags`. (With `find_missed`,
            the found ones follow the listed ones of each scene.)

        Raises
        ------
        ValueError
            A mistake in the arguments; the message names the argument, what was expected and what came.
        """
        settings = _check(solver, n_iteration, start, robust, center_sigma, aperture_diameter, n_threads)
        scenes = make_scenes(cutouts, centers, bundle_bands=self.bundle.bands,
                             bundle_pixel_scale=self.bundle.pixel_scale, window_half=self.window // 2, bands=bands,
                             variance=variance, mask=mask, psf=psf, background=background, zero_point=zero_point,
                             pixel_scale=pixel_scale, kind=kind, bundle_sky_sigma=self.bundle.sky_sigma)
        result = self.deblend_scenes(scenes, settings, n_threads)
        if find_missed:
            peaks = [result.residual_peaks(k)[:, :2] for k in range(len(scenes))]
            if any(len(p) for p in peaks):
                scenes = [with_sources(s, p, self.window // 2) for s, p in zip(scenes, peaks, strict=True)]
                result = self.deblend_scenes(scenes, settings, n_threads)
        return result

    def deblend_scenes(self, scenes: list[Scene], settings: _Settings, n_threads: int) -> DeblendResult:
        """Solve validated scenes; `deblend_batch` is the public way in."""
        result, groups = self._empty_result(scenes, settings)
        chunks = []
        for index, members in groups.items():
            held: list[int] = []
            for i in members:
                if held and sum(scenes[k].n_source for k in held) + scenes[i].n_source > CHUNK:
                    chunks.append((index, held))
                    held = []
                held.append(i)
            chunks.append((index, held))

        covariances: dict[int, NDArray[np.float32]] = {}

        def run(chunk: tuple[int, list[int]]) -> None:
            covariances.update(self._solve_chunk(result, chunk[1], result.folded[chunk[0]], settings))

        if n_threads == 1 or len(chunks) < 2:
            for chunk in chunks:
                run(chunk)
        else:
            with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
                list(pool.map(run, chunks))
        # blends came with the row of their first member as their number
        first, number = np.unique(result.blend[result.blend >= 0], return_inverse=True)
        result.blend[result.blend >= 0] = number
        result.blend_flux_cov.extend(covariances[int(k)] for k in first)
        return result

    def _empty_result(self, scenes: list[Scene], settings: _Settings) -> tuple[DeblendResult, dict[int, list[int]]]:
        """A result full of NaN, and the scenes of each folded basis that have sources to fit."""
        counts = np.array([s.n_source for s in scenes], np.int64)
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        n, n_band, n_basis = int(start[-1]), len(self.bundle.bands), self.bundle.n_basis
        n_latent = self.bundle.n_latent
        folded: list[FoldedBasis] = []
        by_array: dict[int, int] = {}
        index = np.zeros(len(scenes), np.int64)
        groups: dict[int, list[int]] = {}
        for i, scene in enumerate(scenes):
            key = id(scene.psf) if scene.psf is not None else 0
            if key not in by_array:
                basis = self.fold(scene.psf)
                found = [k for k, f in enumerate(folded) if f is basis]
                if not found:
                    folded.append(basis)
                by_array[key] = found[0] if found else len(folded) - 1
            index[i] = by_array[key]
            if scene.n_source:
                groups.setdefault(int(index[i]), []).append(i)

        def nan(*shape: int) -> NDArray[np.float64]:
            return np.full(shape, np.nan)

        flags = np.concatenate([np.zeros(0, np.int64), *[s.flags for s in scenes]])
        for i, scene in enumerate(scenes):
            if folded and (folded[index[i]].narrow & scene.band_present).any():
                flags[start[i] : start[i + 1]] |= int(Flag.PSF_TOO_NARROW)
        centers = np.concatenate([np.zeros((0, 2)), *[s.centers for s in scenes]])
        anchors = np.concatenate([np.zeros((0, 2), np.int64), *[s.anchors for s in scenes]])
        weighted = [s.inverse_variance * s.image.astype(np.float64) ** 2 for s in scenes]
        result = DeblendResult(
            bands=tuple(self.bundle.bands), source_start=start,
            scene_index=np.repeat(np.arange(len(scenes)), counts), center=centers, position=nan(n, 2),
            latent=nan(n, n_latent).astype(np.float32), flux=nan(n, n_band), flux_err=nan(n, n_band),
            flux_cov=nan(n, n_band, n_band), blend=np.full(n, -1, np.int64), blend_flux_cov=[],
            position_err=nan(n, 2), redistributed_flux=nan(n, n_band), redistributed_flux_err=nan(n, n_band),
            aperture_flux=nan(n, n_band), aperture_flux_err=nan(n, n_band), moments=nan(n, 3), ellipticity=nan(n, 2),
            ellipticity_err=nan(n, 2), blendedness=nan(n, n_band), flux_overlap=nan(n, n_band),
            max_overlap=nan(n, n_band), map_flux=nan(n, n_band), chi2=nan(n),
            n_pixel=np.zeros(n, np.int64), log_prior=nan(n), flags=flags, enclosed=nan(n, n_band), scenes=scenes,
            # of an empty model; scenes that are fitted get their own
            scene_chi2=np.array([float(c.sum()) for c in weighted]),
            scene_n_pixel=np.array([int((s.inverse_variance > 0).sum()) for s in scenes], np.int64),
            objective=np.array([0.5 * float(c.sum()) for c in weighted]),
            coefficients=np.zeros((n, n_band, n_basis), np.float32), anchor=anchors,
            star=np.concatenate([np.zeros(0, bool), *[s.star for s in scenes]]), extended=np.zeros(n, bool),
            folded=folded,
            folded_index=index, model_name=self.bundle.name, model_version=self.bundle.model_version,
            model_sha256=self.bundle.sha256, solver=settings.solver, n_iteration=settings.n_iteration,
            aperture_diameter=settings.aperture_diameter)
        return result, groups

    def _solve_chunk(self, result: DeblendResult, members: list[int], folded: FoldedBasis,
                     settings: _Settings) -> dict[int, NDArray[np.float32]]:
        """Solve some scenes that share a folded basis and write their rows into the result; returns as `record`."""
        members = [i for i in members if (result.scenes[i].flags & NOT_FITTED == 0).any()]
        if not members:
            return {}
        problem, rows = build_problem([result.scenes[i] for i in members], folded, self.runtime, self.bundle,
                                      center_sigma=settings.center_sigma, robust=settings.robust)
        problem, latent, floor = start_latents(problem, settings.start)
        solution = solver.solve(problem, latent, floor, settings.solver, settings.n_iteration)
        return record(result, members, rows, solution)


def _check(solver_name: str, n_iteration: int | None, start: str, robust: bool, center_sigma: float,
           aperture_diameter: float, n_threads: int) -> _Settings:
    if not isinstance(solver_name, str) or solver_name not in solver.ITERATIONS:
        raise ValueError(f"solver: expected one of {sorted(solver.ITERATIONS)}, got {solver_name!r}")
    if start not in ("linear", "encoder"):
        raise ValueError(f"start: expected 'linear' or 'encoder', got {start!r}")
    count = solver.ITERATIONS[solver_name] if n_iteration is None else n_iteration
    if not _is_whole(count, 0):
        raise ValueError(f"n_iteration: expected a whole number of at least 0, got {n_iteration!r}")
    if not (isinstance(center_sigma, numbers.Real) and 0 < center_sigma < np.inf):
        raise ValueError(f"center_sigma: expected a positive number of pixels, got {center_sigma!r}")
    if not (isinstance(aperture_diameter, numbers.Real) and 0 < aperture_diameter < np.inf):
        raise ValueError(f"aperture_diameter: expected a positive number of arcsec, got {aperture_diameter!r}")
    if not _is_whole(n_threads, 1):
        raise ValueError(f"n_threads: expected a whole number of at least 1, got {n_threads!r}")
    return _Settings(solver_name, int(count), start, bool(robust), float(center_sigma),
                     float(aperture_diameter))


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, numbers.Real) and float(value) >= least and float(value).is_integer()
