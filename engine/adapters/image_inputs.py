"""Reader of the image and the list of sources that the command line names, for a single run and for shards."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deblendrt.engine.files import fits, fits_header
from deblendrt.engine.files.catalogues import Catalog, read_source_list
from deblendrt.engine.files.tables.identifiers import fits_text
from deblendrt.engine.units import InputWarning


@contextlib.contextmanager
def gathered_notices() -> Iterator[list[str]]:
    """Yield a list that takes the texts of notices, each text once, in place of warnings. Other warnings are shown."""
    found: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], *others: Any, **named: Any) -> None:
            if not issubclass(category, InputWarning):
                show(message, category, *others, **named)
            elif str(message) not in found:
                found.append(str(message))

        warnings.showwarning = keep
        warnings.simplefilter("always", InputWarning)
        yield found


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `Deblender.deblend_batch` that the command line sets."""
    return {"solver": arguments.solver, "n_iteration": arguments.iterations, "start": arguments.start,
            "robust": not arguments.no_robust, "detail": not arguments.no_detail, "sky": arguments.sky,
            "zeros": arguments.zeros, "center_sigma": arguments.center_sigma,
            "aperture_diameter": arguments.aperture, "find_missed": arguments.find_missed,
            "star_fraction": arguments.star_fraction, "n_threads": arguments.threads}


def parse_columns(text: str | None) -> dict[str, str]:
    """Return names of columns by role from ``x=NAME,y=NAME``; roles are those of `catalogues.COLUMN_ROLES`."""
    return {} if not text else {role.lower(): name for role, name in
                                _pairs("columns", text, "x=NAME,y=NAME,id=NAME").items()}


def told_bands(text: str | None) -> dict[str, str] | None:
    """Return the file's names of bands by the wanted names, from ``gri``, ``g,r,i`` or ``g=HSC-G,r=HSC-R``."""
    if not text:
        return None
    if "=" not in text:
        return {name: name for name in fits_header.parse_bands(text)}
    words = [word.strip() for word in text.split(",")]
    return _pairs("bands", ",".join(word if "=" in word else f"{word}={word}" for word in words), "g=HSC-G,r=HSC-R")


def told_zero_point(text: str) -> float | list[float] | dict[str, float]:
    """Return zero points from ``27``, ``27,27.5`` or ``g=27,r=27.5``."""
    if "=" in text:
        return {band: float(value) for band, value in _pairs("zero-point", text, "g=27,r=27.5").items()}
    values = [float(word) for word in text.split(",")]
    return values[0] if len(values) == 1 else values


def by_band(name: str, given: list[str] | None) -> Path | dict[str, Path] | None:
    """Return the file of an option ``--name FILE``, or files by band of ``--name g=FILE --name r=FILE``."""
    if not given:
        return None
    if len(given) == 1 and not _named_file(given[0]):
        return Path(given[0])
    if wrong := [text for text in given if not _named_file(text)]:
        raise ValueError(f"--{name}: expected one FILE, or BAND=FILE for each band, got {wrong[0]}")
    pairs = [text.split("=", 1) for text in given]
    if twice := [band for band, _ in pairs if [pair[0] for pair in pairs].count(band) > 1]:
        raise ValueError(f"--{name}: band {twice[0]} is given twice")
    return {band: Path(path) for band, path in pairs}


def told_psf(given: list[str]) -> Any:
    """Return the PSF of an option ``--psf``, for all bands or as a dict by band: a FWHM, a path, or "nominal"."""
    told = by_band("psf", given)
    return {band: _psf(path) for band, path in told.items()} if isinstance(told, dict) else _psf(told)


def _psf(told: Path | None) -> float | str:
    try:
        return float(str(told))
    except ValueError:
        return str(told)


def _named_file(text: str) -> bool:
    """Return whether a text is BAND=FILE, and not a path with a sign "="."""
    band, sign, path = text.partition("=")
    return bool(sign and band and path and "/" not in band and not Path(text).exists())


def _pairs(option: str, text: str, example: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    found = {key.strip(): value.strip() for key, _, value in pairs}
    if any(not (sign and key.strip() and value.strip()) for key, sign, value in pairs) or len(found) < len(pairs):
        raise ValueError(f"--{option}: expected names such as {example}, got {text!r}")
    return found


def read_inputs(arguments: argparse.Namespace) -> tuple[fits.ImageFile, Catalog, list[str]]:
    """Return the image, its list of sources, and notes about every assumption."""
    bands = told_bands(arguments.bands)
    columns = parse_columns(arguments.columns)
    listed = arguments.catalog is None and not arguments.detect  # else the file's CENTERS are not used
    planes = {name: by_band(name, getattr(arguments, name)) for name in ("variance", "weight", "error", "mask")}
    with gathered_notices():  # they are the image's notes
        image = fits.read_image(arguments.image, bands=bands, bad_bits=arguments.bad_bits,
                                zero_point=arguments.zero_point, one_based=listed and arguments.one_based,
                                columns=columns if listed else None, any_compression=arguments.any_compression,
                                **planes)
    notes = list(image.notes)
    if image.bands is None:
        raise ValueError(
            f"{image.path}: no band names in the file: say --bands, such as gri, for its {len(image.image)}"
        )
    if image.zero_point is None:
        found = f"BUNIT {image.unit!r}" if image.unit else "no BUNIT"
        raise ValueError(f"{image.path}: {found} and no zero point in the header: say --zero-point (31.4 means nJy)")
    told, scale = arguments.pixel_scale, image.pixel_scale
    if told is not None and scale is not None and abs(told / scale - 1) > fits_header.SQUARE_TOLERANCE:
        notes.append(f"pixel scale {told:g} arcsec as told; the file says {scale:.4g}")
    image = dataclasses.replace(image, pixel_scale=told or scale)
    if image.pixel_scale is None:
        notes.append("no pixel scale in the header: taken to be the model's")
    if image.variance is None:
        notes.append("no variance in the file: estimated from the image (sky noise only)")
    if arguments.psf:
        image = dataclasses.replace(image, psf=told_psf(arguments.psf))

    if arguments.catalog is not None and arguments.detect:
        raise ValueError("--catalog and --detect exclude each other")
    if arguments.detect and (columns or arguments.one_based):
        raise ValueError("--detect takes no list of sources: leave --columns and --one-based out")
    if arguments.catalog is not None:
        catalog = read_source_list(arguments.catalog, image.wcs, arguments.one_based, columns,
                                   (image.image.shape[1], image.image.shape[2]))
        notes += catalog.notes
    elif arguments.detect:
        from deblendrt.engine.files.detection import detect

        catalog = Catalog(detect(image.image, image.variance, image.mask, threshold=arguments.threshold))
        notes.append(f"{len(catalog.centers)} sources detected above {arguments.threshold:g} sigma")
    elif image.centers is not None:
        catalog = Catalog(image.centers, image.ids, image.kinds)
    else:
        raise ValueError(f"{image.path}: no CENTERS in the file: give --catalog CAT or --detect")
    if catalog.ids is not None and catalog.ids.dtype.kind == "U":
        n_escaped = sum(fits_text(name) != name for name in catalog.ids.filled(""))
        if n_escaped:
            notes.append(f"catalog_id: {n_escaped} identifiers with letters that FITS lacks are written with escapes, "
                         "such as \\xe9")
    if not len(catalog.centers):
        raise ValueError("no sources: " + ("nothing detected" if arguments.detect else "the catalogue has no row"))
    return image, catalog, notes
