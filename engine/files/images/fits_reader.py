"""Assembly of an image file's planes: the choice of bands, one unit for all bands, and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from deblendrt.engine.files import fits_header
from deblendrt.engine.files.catalogues import Catalog, source_list
from deblendrt.engine.files.images import planes
from deblendrt.engine.files.images.image_file import (
    ImageFile,
    ZeroPoint,
    check_grids,
    common_unit,
    per_band,
    single,
    stack_psfs,
)
from deblendrt.engine.files.images.planes import FitsPlane, has_data, name_of


class FitsReader:
    """The planes of an open file, and the choice of bands from them."""

    def __init__(self, path: Path, hdus: fits.HDUList, told: Mapping[str, str] | None, bad_bits: int | None,
                 outside: Sequence[FitsPlane] = ()) -> None:
        self.path, self.bad_bits = path, bad_bits
        self.notes: list[str] = []
        self.primary = hdus[0].header
        self.tables = {name_of(hdu).upper(): hdu for hdu in hdus if name_of(hdu) and has_data(hdu)}
        kinds = {_family(plane) for plane in outside}  # planes of other files replace the file's own
        self.planes = [plane for plane in planes.planes_of(hdus) if _family(plane) not in kinds]
        self.told_noise = "noise" in kinds
        self.planes += [dataclasses.replace(plane, band=(told or {}).get(plane.band, plane.band)) for plane in outside]
        self.found = ", ".join(name_of(hdu) or "unnamed" for hdu in hdus)
        self.used: list[FitsPlane] = []
        self.images = self._images(hdus)
        self.used += self.images
        self.many = len(self.images) > 1 or (self.images[0].band != "" and self.images[0].hdu.header.get("NAXIS") == 2)
        self.header = self.images[0].hdu.header
        self.band_table = _table(path, self.tables["BANDS"]) if "BANDS" in self.tables else None
        self.names = self._names()  # of the file's bands; empty if they are not known
        self.bands, self.index = self._choose(told)
        self.n_band, self.taken = len(self.images), self.index
        self.elsewhere: list[str] = []  # bands of the file that are not wanted
        if len(self.images) > 1:  # only planes that are wanted are read
            self.images = [self.images[i] for i in self.index]
            self.elsewhere = [name for i, name in enumerate(self.names) if i not in self.index]
            self.names = [self.names[i] for i in self.index] if self.names else []
            self.index = list(range(len(self.index)))
            self.header = self.images[0].hdu.header

    def _images(self, hdus: fits.HDUList) -> list[FitsPlane]:
        named = [plane for plane in self.planes if plane.role == "image"]
        whole = [plane for plane in named if not plane.split]
        if "IMAGE" in self.tables and not any(plane.hdu is self.tables["IMAGE"] for plane in whole):
            planes.pixels(self.path, self.tables["IMAGE"])  # raises: a table
        for name in (*planes.IMAGE_NAMES, ""):
            if alike := [plane for plane in whole if plane.name.upper() == name]:
                return alike
        if has_data(hdus[0]):
            return [next(plane for plane in self.planes if plane.hdu is hdus[0])]
        if named:
            return named
        plain = [plane for plane in self.planes if not plane.role]
        if unnamed := [plane for plane in plain if not plane.name]:
            return unnamed
        flat = [dataclasses.replace(plane, band=planes.band_of_name(plane.name)) for plane in plain
                if len(plane.hdu.shape) == 2]
        if not flat:
            raise ValueError(f"{self.path}: no IMAGE, no primary image, no image per band; extensions found: "
                             f"{self.found}")
        return flat

    def _names(self) -> list[str]:
        """Return the names of the file's bands, in its order; empty if it does not name them."""
        own = [plane.band for plane in self.images]
        if self.band_table is not None:
            names = list(_band_column(self.path, self.band_table))
        elif len(own) > 1 and any(own):
            if not all(own):
                raise ValueError(f"{self.path}: a band's name in some images only: {own}")
            names = own
        elif self.many and own[0]:
            names = own
        else:
            names = list(fits_header.bands(self.header, self.primary) or ())
        twice = sorted({name for name in names if names.count(name) > 1})
        versions = [plane.version for plane in self.images]
        if twice or (len(self.images) > 1 and names and len(names) != len(self.images)):
            raise ValueError(f"{self.path}: {len(self.images)} images (EXTVER {versions}) for the bands "
                             f"{', '.join(names)}: chips or exposures; give each as a file of its own")
        return names

    def _choose(self, told: Mapping[str, str] | None) -> tuple[tuple[str, ...] | None, list[int]]:
        """Return the names of the bands to read, and their numbers in the file."""
        shape = self.images[0].hdu.shape
        n = len(self.images) if len(self.images) > 1 else 1 if len(shape) == 2 else shape[0]
        whole = (n, *shape[-2:])
        if self.names and len(self.names) != n:
            raise ValueError(f"{self.path}: {len(self.names)} band names ({', '.join(self.names)}) for an image of "
                             f"shape {whole}")
        if told is None:
            return tuple(self.names) or None, list(range(n))
        if not self.names:
            if len(told) != n or any(new != old for new, old in told.items()):
                raise ValueError(f"{self.path}: {len(told)} band names ({', '.join(told)}) for an image of shape "
                                 f"{whole}")
            self.names = list(told)
            return tuple(told), list(range(n))
        index = []
        for new, old in told.items():
            alike = [k for k, name in enumerate(self.names) if name == old] or [
                k for k, name in enumerate(self.names) if planes.same_band(old, name)]
            if len(alike) != 1:
                flat = self.many and self.images[0].name and not self.images[0].role
                what = (f"no extension for band {old!r}; extensions found: {self.found}" if flat else
                        f"{len(told)} band names ({', '.join(told)}) for an image of shape {whole} whose bands are "
                        f"{', '.join(self.names)}")
                raise ValueError(f"{self.path}: {what}; to rename a band say {new}=NAME_IN_THE_FILE")
            index.append(alike[0])
        if len(set(index)) < len(index):
            raise ValueError(f"{self.path}: bands: {', '.join(told)} name a band of {', '.join(self.names)} twice")
        return tuple(told), index

    def band_in_file(self, band: str) -> dict[str, str]:
        """Return the file's name of a band by the told name, for a file that should hold this band.

        Raises
        ------
        ValueError
            The file holds several bands without this one, or another band of ugrizy.
        """
        alike = [name for name in self.names if planes.same_band(band, name)]
        if len(alike) == 1:
            return {band: alike[0]}
        if not self.names:
            return {band: band}
        if len(self.names) == 1 and not any(planes.same_band(other, self.names[0]) for other in "ugrizy"):
            self.notes.append(f"band {self.names[0]} is taken as {band}")
            return {band: self.names[0]}
        raise ValueError(f"{self.path}: expected an image of band {band}, found {', '.join(self.names)}")

    def read(self, zero_point: ZeroPoint | None, one_based: bool, columns: Mapping[str, str] | None) -> ImageFile:
        """Read the planes of the chosen bands, in the unit of the first band."""
        path, index = self.path, self.index
        pieces = [planes.pixels(path, plane.hdu) for plane in self.images]
        shapes = sorted({piece.shape for piece in pieces})
        if len(shapes) > 1 or (len(pieces) > 1 and shapes[0][0] != 1):
            raise ValueError(f"{path}: bands of different shape {[shape[1:] for shape in shapes]}; resample them to "
                             "one pixel grid first")
        whole = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        wcs = [fits_header.celestial_wcs(path, plane.hdu.header) for plane in self.images]
        check_grids(str(path), wcs, [str(name) for name in self.names or range(len(wcs))], whole.shape[1:])
        points = self._zero_points(zero_point, len(whole))
        mask, psf = self._mask(whole.shape), self._psf(len(whole))
        variance, more = self._variance(whole)
        if more is not None:
            mask = more if mask is None else mask | more
        self._say_what_is_used()
        factor, zero = common_unit([points[i] for i in index])
        image = single(whole[index], factor, "IMAGE", path)
        if variance is not None:
            variance = single(variance[index], factor**2, "VARIANCE", path)
            self._check_variance(image, variance)
        sources: Catalog | None = None
        if "CENTERS" in self.tables:
            sources = source_list(f"{path}[CENTERS]", _table(path, self.tables["CENTERS"]), wcs[0], one_based, columns,
                                  (image.shape[1], image.shape[2]))
            self.notes += sources.notes
        return ImageFile(
            path=path, image=image, bands=self.bands, variance=variance,
            mask=mask[index] if mask is not None and mask.ndim == 3 and len(mask) > 1 else mask,
            psf=None if psf is None else psf[index],
            centers=None if sources is None else sources.centers,
            ids=None if sources is None else sources.ids,
            kinds=None if sources is None else sources.kinds,
            zero_point=zero,
            unit=unit if isinstance(unit := self.header.get("BUNIT"), str) else None,
            pixel_scale=fits_header.pixel_scale(path, wcs[0], self.header, self.primary),
            wcs=wcs[0], notes=tuple(dict.fromkeys(self.notes)))

    def _zero_points(self, told: ZeroPoint | None, n: int) -> list[float | None]:
        """Return the zero point of each plane of the file; a told zero point has precedence."""
        table = self.band_table
        known: list[float | None]
        try:
            if len(self.images) > 1:
                known = [fits_header.zero_point(self.path, plane.hdu.header, self.primary) for plane in self.images]
            elif table is not None and "zero_point" in table.colnames:
                known = [float(value) for value in table["zero_point"]]
            else:
                known = [fits_header.zero_point(self.path, self.header, self.primary)] * n
        except ValueError:
            if told is None:  # else the caller knows better, such as for a surface brightness
                raise
            known = [None] * n
        if told is not None:
            own = [known[i] for i in self.index]
            given = per_band(told, self.bands, len(self.index))
            if any(point is not None and abs(point - value) > 1e-6 for point, value in zip(own, given, strict=True)):
                listed = ", ".join(f"{value:g}" for value in dict.fromkeys(given))
                file = ", ".join("none" if point is None else f"{point:g}" for point in dict.fromkeys(own))
                self.notes.append(f"zero point {listed} as told; the file says {file}")
            for i, value in zip(self.index, given, strict=True):
                known[i] = value
        chosen = [known[i] for i in self.index]
        if any(point is None for point in chosen) and any(point is not None for point in chosen):
            names = self.bands or [str(i) for i in self.index]
            raise ValueError(f"{self.path}: a zero point or BUNIT for some bands only "
                             f"({dict(zip(names, chosen, strict=True))})")
        return known

    def _of_role(self, role: str) -> list[FitsPlane]:
        """Return the planes of a role. A name such as VAR_POISSON does not count unless POISSON is a band."""
        found = [plane for plane in self.planes if plane.role == role and (not plane.split or any(
            planes.same_band(plane.band, name) or planes.same_band(name, plane.band) for name in self.names))]
        self.used += found
        return found

    def _groups(self, role: str) -> list[tuple[FitsPlane, list[FitsPlane] | None]]:
        """Return the planes of a role: for each name of an extension its first plane, and the planes by band."""
        groups: dict[str, list[FitsPlane]] = {}
        for plane in self._of_role(role):
            groups.setdefault("" if plane.split else plane.name.upper(), []).append(plane)
        return [(group[0], planes.by_band(self.path, role, group, self.images, self.names))
                for group in groups.values()]

    def _variance(self, image: NDArray[Any]) -> tuple[NDArray[Any] | None, NDArray[np.bool_] | None]:
        """Return the variance (n_band, ...) in the unit of each band, and pixels that a relative weight excludes."""
        hidden, result = None, None
        for role in planes.NOISE_ROLES:
            groups = self._groups(role) if result is None else []
            for first, listed in groups[:1]:
                headers = [plane.hdu.header for plane in self.images]
                if listed is None:
                    result = self._taken(planes.variance_of(self.path, first, headers[0], self.notes))
                else:
                    result = np.concatenate([planes.variance_of(self.path, plane, header, self.notes) for plane, header
                                             in zip(listed, headers * (len(listed) // len(headers)), strict=True)])
                if result.shape != image.shape:
                    raise ValueError(f"{self.path}[{first.name}]: shape {result.shape} does not match the image's "
                                     f"{image.shape}")
                if role == "weight" and first.name.upper() not in ("INVVAR", "IVAR") and not all(
                        planes.is_inverse_variance(*pair) for pair in zip(image, result, strict=True)):
                    if self.told_noise:
                        raise ValueError(f"{self.path}: weight: expected the inverse variance of the image's noise, "
                                         "got a plane of another scale: scale it, or give a variance")
                    hidden, result = np.isinf(result), None
                    self.notes.append(f"{first.name} is no inverse variance of the image's noise: ignored, except that "
                                      "pixels of 0 are bad")
            for other, _ in groups[1:]:
                self.used = [plane for plane in self.used if plane.name != other.name]
        for first, listed in self._groups("relative weight"):
            zero = [planes.pixels(self.path, plane.hdu) == 0 for plane in listed or [first]]
            none = np.broadcast_to(np.concatenate(zero), image.shape)
            hidden = none if hidden is None else hidden | none
            self.notes.append(f"{first.name} is an exposure time or a relative weight: ignored, except that pixels of "
                              "0 are bad")
        table = self.band_table
        if result is None and table is not None and "sky_sigma" in table.colnames:
            result = np.asarray(table["sky_sigma"], dtype=np.float32) ** 2
            self.notes.append("no VARIANCE: taken as sky_sigma^2 of the BANDS table")
        return result, hidden

    def _taken(self, cube: NDArray[Any]) -> NDArray[Any]:
        """Return the wanted planes of a cube (n_band, n_y, n_x) beside images of single bands."""
        wanted = len(self.images) < self.n_band == len(cube) and cube.ndim == 3
        return cube[self.taken] if wanted else cube

    def _check_variance(self, image: NDArray[np.float32], variance: NDArray[np.float32]) -> None:
        """Raise ValueError if no variance is above 0, and note bands without such a pixel."""
        used = [bool((values > 0).any()) for values in variance]
        lit = [bool((pixels != 0).any()) for pixels in image]
        if any(lit) and not any(used):
            raise ValueError(f"{self.path}[VARIANCE]: expected positive numbers, got none")
        for k, (fine, full) in enumerate(zip(used, lit, strict=True)):
            if full and not fine:
                name = self.bands[k] if self.bands else k
                self.notes.append(f"band {name}: no variance above 0: the band is not used")

    def _mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        mask = None
        for first, listed in self._groups("mask"):
            bad = [planes.bad_pixels(self.path, plane, self.bad_bits, self.primary, self.notes)
                   for plane in listed or [first]]
            own = self._taken(bad[0]) if listed is None else np.stack([piece.reshape(shape[1:]) for piece in bad])
            if own.shape != shape[3 - own.ndim :]:
                raise ValueError(f"{self.path}[{first.name}]: shape {own.shape} does not match the image's {shape}")
            mask = own if mask is None else mask | own
        return mask

    def _psf(self, n: int) -> NDArray[np.float32] | None:
        for first, listed in self._groups("psf"):
            if listed is not None:
                return stack_psfs(self.path, [planes.pixels(self.path, plane.hdu)[0] for plane in listed])
            psf = self._taken(planes.pixels(self.path, first.hdu))
            if psf.shape[0] not in (1, n):
                raise ValueError(f"{self.path}[PSF]: shape {psf.shape}, expected ({n}, q, q)")
            return np.broadcast_to(psf, (n, *psf.shape[1:])).astype(np.float32)
        return None

    def _say_what_is_used(self) -> None:
        plain = ("VARIANCE", "MASK", "PSF")
        names = {plane.name.upper(): plane for plane in self.used if plane.role in planes.MEANINGS}
        said = [f"{plane.name} ({planes.MEANINGS[plane.role]})" for name, plane in names.items()
                if not plane.split and name and name not in plain
                and not any(note.startswith(f"{plane.name} is no") for note in self.notes)]
        if said:
            self.notes.append(f"used: {', '.join(said)}")
        used = {id(p.hdu) for p in self.used} | {id(p.hdu) for p in self.planes if p.band in self.elsewhere}
        if other := dict.fromkeys(p.name or "an unnamed image" for p in self.planes if id(p.hdu) not in used):
            self.notes.append(f"ignored: {', '.join(other)}")


def _family(plane: FitsPlane) -> str:
    return "noise" if plane.role in planes.NOISE_ROLES else plane.role or str(id(plane))


def _table(path: Path, hdu: Any) -> Table:
    if hdu.is_image:
        raise ValueError(f"{path}[{name_of(hdu)}]: expected a table, found an image of shape {hdu.shape}")
    return Table.read(hdu)


def _band_column(path: Path, table: Table) -> tuple[str, ...]:
    if "band" not in table.colnames:
        raise ValueError(f"{path}[BANDS]: no column 'band'; columns: {', '.join(table.colnames)}")
    return tuple(str(name).strip() for name in table["band"])
