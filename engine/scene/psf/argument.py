"""The argument `psf`: the forms in which a caller may give PSFs, brought to images in the model's bands.

A PSF of one band is an image, a FWHM in arcsec, a model (`deblendrt.engine.scene.psf.models`) or the path of a file. A
PSF of all bands is one of these for every band, a sequence or a dict of them, a function (x, y) -> PSF of all bands, or
a `CellPsf`. "nominal" stands for the model's nominal PSFs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.files import fits
from deblendrt.engine.files.psfex import read_psfex
from deblendrt.engine.scene.arguments import per_scene
from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.objects.arrays import came, is_a, is_sequence, plain_images, rank
from deblendrt.engine.scene.objects.bands import in_order
from deblendrt.engine.scene.psf.field import CellPsf, PsfField, psf_field
from deblendrt.engine.scene.psf.images import NORM_TOLERANCE, centred_psf, kolmogorov_psf, normalize_psf
from deblendrt.engine.scene.psf.models import fwhm_in_pixels, is_model, model_function
from deblendrt.engine.units import notify

NOMINAL = "nominal"
FORMS = ('images (n_band, q, q), an image for all bands, a FWHM in arcsec, "nominal", a file, a CellPsf, a function '
         "(x, y) -> images, or a model of Piff, photutils, astropy or GalSim")


class ScenePsf(NamedTuple):
    """The PSF of a scene.

    Attributes
    ----------
    images : float64 (n_band, q, q), PsfField, or None
        In the model's bands, of sum one; None stands for the model's nominal PSFs.
    renormalized : bool
        Whether the sum of an image was not one before. A `PsfField` knows this itself.
    unasked : bool
        Whether the nominal PSFs are used although the caller did not ask for them.
    """

    images: NDArray[np.float64] | PsfField | None
    renormalized: bool = False
    unasked: bool = False

    def flags(self, centers: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the flags that sources at positions (n, 2) [pixel] get from the PSF, int64 (n,)."""
        found = np.zeros(len(centers), np.int64)
        if isinstance(self.images, PsfField):
            found[self.images.renormalized[self.images.at(centers)]] |= Flag.PSF_NOT_NORMALIZED
            found[~self.images.given[self.images.cells(centers)]] |= Flag.PSF_MISSING
        elif self.renormalized:
            found |= Flag.PSF_NOT_NORMALIZED
        return found | Flag.PSF_NOMINAL if self.unasked else found


class GivenPsfs:
    """The PSFs of the scenes of a call. Scenes that share a PSF share its images.

    Parameters
    ----------
    psf : Any
        The argument of `Deblender.deblend_batch`.
    names : sequence of str
        The caller's bands.
    target : int64 (n_given,)
        Index of every given band among the model's bands.
    n_scene : int
    nested : bool
        Whether the cutouts are a sequence of scenes.
    pixel_scale : float [arcsec]
    """

    def __init__(self, psf: Any, names: Sequence[str], target: NDArray[np.int64], n_scene: int, nested: bool,
                 pixel_scale: float) -> None:
        self.names, self.target, self.pixel_scale = tuple(names), target, pixel_scale
        self._entries = _of_scenes(psf, n_scene, nested, len(names))
        self._known: dict[tuple[Any, ...], tuple[ScenePsf, Any]] = {}
        self._read: dict[int, tuple[Any, Any]] = {}
        self._recentred: list[str] = []
        self._nominal = 0

    def of_scene(self, i: int, own: Any, present: NDArray[np.bool_], shape: tuple[int, int], n_source: int,
                 where: str = "") -> ScenePsf:
        """Return the PSF of a scene.

        Parameters
        ----------
        i : int
        own : Any
            The PSF that the cutout carries, or None.
        present : bool (n_band,)
            Whether the scene has data in each of the model's bands. A band without data needs no valid PSF, because
            pipelines have no PSF for it.
        shape : (int, int)
            (n_y, n_x) of the scene.
        n_source : int
        where : str
            Index of the scene for messages, such as "[3]".

        Returns
        -------
        ScenePsf

        Raises
        ------
        ValueError
            The PSF has none of the known forms, or is invalid.
        """
        entry, name = self._entries[i], "psf" + where
        if own is not None:
            if entry is not None:
                raise ValueError(f"{name}: expected None, since cutouts{where} has a PSF")
            entry = own
        if entry is None:
            self._nominal += n_source > 0
            return ScenePsf(None, unasked=True)
        if id(entry) not in self._read:  # with the entry, so that its id stays its own
            self._read[id(entry)] = self._scene_entry(entry, name), entry
        found = self._read[id(entry)][0]
        if isinstance(found, str) or not present.any():
            return ScenePsf(None)
        varies = callable(found) or isinstance(found, CellPsf)
        key = (id(found), present.tobytes(), shape if varies else ())
        if key not in self._known:
            if varies:
                cells = found if isinstance(found, CellPsf) else CellPsf.sample(found, shape)
                images = psf_field(cells, lambda each, cell: self._of_cell(each, present, cell), name)
                self._known[key] = ScenePsf(images), found
            else:
                self._known[key] = ScenePsf(*self._images(found, present, name)), found
        return self._known[key][0]

    def notify(self, fwhm: Mapping[str, float]) -> None:
        """Warn of nominal PSFs that nobody asked for, and of recentred images.

        Parameters
        ----------
        fwhm : mapping of str to float [arcsec]
            Widths of the nominal PSFs by band; it may be empty.
        """
        if self._nominal:
            listed = ", ".join(f"{band} {fwhm[band]:.2f}" for band in self.names if band in fwhm)
            widths = f" (FWHM {listed} arcsec)" if listed else ""
            scenes = f" for {self._nominal} of {len(self._entries)} scenes" if len(self._entries) > 1 else ""
            notify(f"psf: none was given{scenes}; the model's nominal PSF is used{widths}, and sources have the flag "
                   'PSF_NOMINAL: give the PSF, or ask for this PSF by name with psf="nominal"')
        if self._recentred:
            others = f"; likewise {len(self._recentred) - 1} other images" if len(self._recentred) > 1 else ""
            notify(self._recentred[0] + others)

    def _scene_entry(self, entry: Any, name: str) -> Any:
        """Return a scene's entry as "nominal", a CellPsf, a function, or a list with an image or function a band."""
        if isinstance(entry, CellPsf) or (isinstance(entry, str) and entry == NOMINAL):
            return entry
        n_band = len(self.names)
        if isinstance(entry, str | os.PathLike):
            planes: list[Any] = self._of_file(entry, n_band, name)
        elif (single := self._single(entry, name)) is not None:
            planes = [single] * n_band
        elif callable(entry):
            return entry
        else:
            planes = self._of_bands(entry, name)
        if not any(callable(plane) for plane in planes):
            return planes
        return lambda x, y: [plane(x, y) if callable(plane) else plane for plane in planes]

    def _of_bands(self, entry: Any, name: str) -> list[Any]:
        """Return an image or a function for each band from a sequence, an array or a dict with an entry a band."""
        n_band = len(self.names)
        try:
            parts = list(in_order(entry, self.names, name, grid=False))
        except TypeError as error:
            raise ValueError(f"{name}: expected {FORMS}, got {came(entry)}") from error
        if len(parts) == 1 and n_band > 1 and not isinstance(entry, Mapping):
            parts = parts * n_band
        shapes = [np.shape(plain_images(part, name)) if rank(part) else () for part in parts]
        if len(parts) != n_band or any(len(shape) not in (0, 2) for shape in shapes):
            raise ValueError(f"{name}: expected images ({n_band}, q, q) for the bands {', '.join(self.names)}, or an "
                             f"image for all bands, got shapes {shapes}")
        planes = []
        for part, band in zip(parts, self.names, strict=True):
            where = f"{name} of band {band}"
            if isinstance(part, str | os.PathLike):
                planes.extend(self._of_file(part, 1, where))
            elif (single := self._single(part, where)) is not None:
                planes.append(single)
            else:
                raise ValueError(f"{where}: expected an image (q, q), a FWHM in arcsec, a file or a model, got "
                                 f"{came(part)}")
        return planes

    def _single(self, value: Any, name: str) -> Any:
        """Return the image or function that a PSF of one band means; None if the value is no PSF of one band."""
        function = model_function(value, self.pixel_scale, name)
        if function is not None:
            return function
        if is_a(value, "astropy.convolution", "Kernel2D"):
            value = value.array
        depth = rank(value)
        if depth == 0 and (isinstance(value, int | float | np.number | np.ndarray) or hasattr(value, "to_value")):
            return _kolmogorov(fwhm_in_pixels(value, self.pixel_scale, name))
        if depth != 2 or isinstance(value, Mapping):
            return None
        if is_sequence(value) and rank(value[0]) and not all(np.ndim(row) == 1 for row in value):
            return None
        image = np.asarray(plain_images(value, name))
        if image.dtype.kind not in "fiu":
            raise ValueError(f"{name}: expected an image of real numbers, got {came(value)} of {image.dtype}")
        return image.astype(np.float64)

    def _of_file(self, path: Any, n_band: int, name: str) -> list[Any]:
        """Return an image or a function for each band from a file."""
        text = os.fspath(path)
        try:
            if text.lower().endswith(".psf"):
                return [read_psfex(text)] * n_band
            return list(fits.read_psf(text, n_band))
        except FileNotFoundError as error:
            raise ValueError(f"{name}: expected {FORMS}, got {text!r}, which is no file") from error

    def _of_cell(self, images: Any, present: NDArray[np.bool_], name: str) -> tuple[NDArray[np.float64], bool]:
        planes = self._scene_entry(images, name)
        if isinstance(planes, str | CellPsf) or callable(planes):
            raise ValueError(f"{name}: expected images ({len(self.names)}, q, q), got {came(images)}")
        return self._images(planes, present, name)

    def _images(self, planes: Sequence[NDArray[np.float64]], present: NDArray[np.bool_],
                name: str) -> tuple[NDArray[np.float64], bool]:
        """Return PSF images in the model's bands, and whether the sum of a given image was not one."""
        used = [b for b, t in enumerate(self.target) if present[t]]
        centred = []
        for b in used:
            where = f"{name} of band {self.names[b]}"
            plane = centred_psf(planes[b], where)
            if plane.shift is not None:
                n_y, n_x = planes[b].shape
                x, y = np.array([n_x - 1, n_y - 1]) / 2 - plane.shift
                self._recentred.append(f"{where}: {n_x} x {n_y} pixels with the centroid at ({x:.2f}, {y:.2f}): "
                                       "recentred on the middle pixel")
            centred.append(plane.image)
        size = max(len(plane) for plane in centred)
        stack = np.stack([np.pad(plane, (size - len(plane)) // 2) for plane in centred])
        normal, norm = normalize_psf(stack, f"{name} of the bands {', '.join(self.names[b] for b in used)}")
        images = np.broadcast_to(normal.mean(0), (len(present), size, size)).copy()
        images[self.target[used]] = normal
        images.flags.writeable = False
        return images, bool((np.abs(norm - 1) > NORM_TOLERANCE).any())


@functools.lru_cache(maxsize=64)
def _kolmogorov(fwhm: float) -> NDArray[np.float64]:
    image = kolmogorov_psf(fwhm)
    image.flags.writeable = False
    return image


def _of_scenes(psf: Any, n_scene: int, nested: bool, n_band: int) -> list[Any]:
    """Return the entry of every scene from an argument that all scenes share, or that has an entry for each scene."""
    whole = psf is None or not nested or rank(psf) == 0 or isinstance(psf, CellPsf) or (
        callable(psf) and not isinstance(psf, np.ndarray))
    if whole:
        return [psf] * n_scene
    if is_sequence(psf) and len(psf) == n_scene and all(_of_all_bands(entry) for entry in psf):
        return list(psf)
    depth = rank(psf)
    table = depth == 2 and not isinstance(psf, Mapping) and len(psf) == n_scene and {
        np.size(row) if not is_sequence(row) else len(row) for row in psf} <= {1, n_band}
    if table:  # a FWHM, a file or a model for every scene and band
        return list(psf)
    if n_band > 1:
        return per_scene(psf, "psf", n_scene, nested, (1, 2, 3), n_band, (1, 3))
    single = len(psf) == 1  # several images (n_scene, q, q), or one image (1, q, q) for all scenes
    return per_scene(psf, "psf", n_scene, nested, (1, 2, 3) if single else (2,), n_band)


def _of_all_bands(entry: Any) -> bool:
    """Return whether an entry of a sequence can only mean the PSFs of all bands of a scene."""
    nominal = entry is None or (isinstance(entry, str) and entry == NOMINAL)
    return nominal or isinstance(entry, CellPsf) or (callable(entry) and not is_model(entry))
