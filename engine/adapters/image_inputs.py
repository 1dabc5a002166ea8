"""Reader of the image and the list of sources that the command line names, for a single run and for shards."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from deblendrt.engine.files import fits, fits_header
from deblendrt.engine.files.catalogues import Catalog, read_source_list
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
            "center_sigma": arguments.center_sigma,
            "aperture_diameter": arguments.aperture, "find_missed": arguments.find_missed,
            "star_fraction": arguments.star_fraction, "n_threads": arguments.threads}


def parse_columns(text: str | None) -> dict[str, str]:
    """Return names of columns by role from ``x=NAME,y=NAME``; roles are those of `catalogues.COLUMN_ROLES`."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    found = {role.strip().lower(): name.strip() for role, _, name in pairs}
    if any(not (sign and role.strip() and name.strip()) for role, sign, name in pairs) or len(found) < len(pairs):
        raise ValueError(f"--columns: expected names such as x=NAME,y=NAME,id=NAME, got {text!r}")
    return found


def read_inputs(arguments: argparse.Namespace) -> tuple[fits.ImageFile, Catalog, list[str]]:
    """Return the image, its list of sources, and notes about every assumption."""
    bands = fits_header.parse_bands(arguments.bands) if arguments.bands else None
    columns = parse_columns(arguments.columns)
    listed = arguments.catalog is None and not arguments.detect  # else the file's CENTERS are not used
    image = fits.read_image(arguments.image, bands=bands, bad_bits=arguments.bad_bits,
                            one_based=listed and arguments.one_based, columns=columns if listed else None)
    notes = list(image.notes)
    if image.bands is None:
        raise ValueError(
            f"{image.path}: no band names in the file: say --bands, such as gri, for its {len(image.image)}"
        )
    zero_point = arguments.zero_point if arguments.zero_point is not None else image.zero_point
    if zero_point is None:
        found = f"BUNIT {image.unit!r}" if image.unit else "no BUNIT"
        raise ValueError(f"{image.path}: {found} and no zero point in the header: say --zero-point (31.4 means nJy)")
    if image.zero_point is not None and zero_point != image.zero_point:
        notes.append(f"zero point {zero_point} as told; the file says {image.zero_point:g}")
    image = dataclasses.replace(image, zero_point=zero_point, pixel_scale=arguments.pixel_scale or image.pixel_scale)
    if image.pixel_scale is None:
        notes.append("no pixel scale in the header: taken to be the model's")
    if image.variance is None:
        notes.append("no variance in the file: estimated from the image (sky noise only)")
    if arguments.psf is not None:
        image = dataclasses.replace(image, psf=fits.read_psf(arguments.psf, len(image.image)))
    elif image.psf is None:
        notes.append("no PSF in the file: taken to be the model's nominal PSF; give --psf for the true one")

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
    if not len(catalog.centers):
        raise ValueError("no sources: " + ("nothing detected" if arguments.detect else "the catalogue has no row"))
    return image, catalog, notes
