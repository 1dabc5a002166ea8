"""``deblendrt run``: reads an image and a list of sources, and writes the catalogue, images and figures."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy import units as u
from astropy.io import fits as io_fits
from astropy.table import Table

from deblendrt.engine.adapters import image_inputs
from deblendrt.engine.files import atomic_write, fits
from deblendrt.engine.files.catalogues import Catalog
from deblendrt.engine.files.sky_positions import to_icrs
from deblendrt.engine.files.tables.identifiers import id_column
from deblendrt.engine.result.image_files import write_images, write_stamps
from deblendrt.engine.result.result_file import tables
from deblendrt.engine.scene.flags import Flag

if TYPE_CHECKING:
    from deblendrt.engine.result.result import DeblendResult

CATALOG, IMAGES, STAMPS, OVERVIEW, SOURCES = "catalog.fits", "images.fits", "stamps.fits", "overview.png", "sources.png"
MAX_SOURCE_PANELS = 40
ROW_BYTES, STAMP_BYTES = 1000, 31 * 31 * 4  # least sizes of a row of the catalogue, and of a stamp in a band
RUN_STAGES = ("read", "load model", "deblend", "write", "plot")


def deblend_files(arguments: argparse.Namespace) -> int:
    """Deblend the image that the command line names; `deblendrt.engine.adapters.cli.main` parses the arguments.

    Returns
    -------
    int
        Exit status: 1 if no source was fitted, else 0.
    """
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else print
    plotting = not arguments.no_plot and importlib.util.find_spec("matplotlib") is not None
    if plotting:
        importlib.import_module("deblendrt.engine.result.figures")  # a broken installation fails before the work
    targets = [CATALOG, IMAGES, *([STAMPS] if arguments.stamps else []), *([OVERVIEW, SOURCES] if plotting else [])]
    _claim(arguments.out, targets, arguments.overwrite)
    started = time.perf_counter()
    with _progress(arguments.quiet) as stage:
        stage("read")
        image, catalog, notes = image_inputs.read_inputs(arguments)
        _check_writing(arguments, image, catalog, targets)
        stage("load model")
        from deblendrt.engine.deblender import Deblender

        deblender = Deblender.load(arguments.model, device=arguments.device)
        stage("deblend")
        clock = time.perf_counter()
        with image_inputs.gathered_notices() as notices:
            result = deblender.deblend_batch(
                image.image,
                catalog.centers,
                variance=image.variance,
                mask=image.mask,
                psf=image.psf,
                bands=image.bands,
                kind=arguments.kind or catalog.kinds,
                zero_point=image.zero_point,
                pixel_scale=image.pixel_scale,
                **image_inputs.options(arguments),
            )
        notes += notices
        deblending = time.perf_counter() - clock
        stage("write")
        _write(arguments, result, catalog, image)
        if plotting:
            stage("plot")
            notes += _plot(arguments.out, result, image.path.name)
    if not plotting and not arguments.no_plot:
        notes.append('no figures: pip install "deblendrt[plot]"')
    for line in summary_lines(result, deblending, time.perf_counter() - started):
        say(line)
    for note in notes:
        say(f"note: {note}")
    say(f"wrote {', '.join(targets)} in {arguments.out}")
    if result.fitted.any() or not result.n_source:
        return 0
    print(f"deblendrt: error: no source was fitted: {_raised(result)}", file=sys.stderr)
    return 1


def _claim(out: Path, targets: list[str], overwrite: bool) -> None:
    existing = [name for name in targets if (out / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{out} already holds {', '.join(existing)}: use another --out, or --overwrite")
    atomic_write.claim_folder(out, targets)


def _check_writing(arguments: argparse.Namespace, image: fits.ImageFile, catalog: Catalog, targets: list[str]) -> None:
    """Make headers and columns that depend on the input alone, and check the space, before the work is done."""
    n_source, n_band = len(catalog.centers), len(image.image)
    if image.wcs is not None:
        image.wcs.to_header(relax=True)
        to_icrs(image.wcs, np.zeros((1, 2)), str(image.path))
    if catalog.ids is not None:
        io_fits.BinTableHDU(Table([id_column(catalog.ids, n_source)]))
    stamps = STAMP_BYTES * n_band * n_source if arguments.stamps else 0
    atomic_write.claim_folder(arguments.out, targets, 2 * image.image.nbytes + ROW_BYTES * n_source + stamps)


def _write(arguments: argparse.Namespace, result: DeblendResult, catalog: Catalog, image: fits.ImageFile) -> None:
    table = result.to_table()
    if catalog.ids is not None:
        table.add_column(id_column(catalog.ids, len(table)), index=1)
    if image.wcs is not None:
        sky = np.full((len(table), 2), np.nan)
        sky[result.fitted] = to_icrs(image.wcs, result.position[result.fitted], str(image.path))
        table["ra"], table["dec"] = sky.T * u.deg
    with atomic_write.in_place_of(arguments.out / CATALOG) as partial:
        tables(result, table).writeto(partial, overwrite=True)
    write_images(arguments.out / IMAGES, result, wcs=image.wcs)
    if arguments.stamps:
        write_stamps(arguments.out / STAMPS, result)


def _plot(out: Path, result: DeblendResult, name: str) -> list[str]:
    from deblendrt.engine.result import figures

    figures.save(figures.plot_overview(result, title=name), out / OVERVIEW)
    chosen = figures.brightest_sources(result, limit=MAX_SOURCE_PANELS)
    n_source = result.n_source
    title = name if len(chosen) == n_source else f"{name}: the {len(chosen)} brightest of {n_source} sources"
    figures.save(figures.plot_sources(result, chosen, title=title), out / SOURCES)
    if len(chosen) == n_source:
        return []
    return [f"{SOURCES} shows the {len(chosen)} brightest of {n_source} sources"]


def summary_lines(result: DeblendResult, deblending: float, total: float) -> Iterator[str]:
    """Yield the lines of the report: number of sources, quality of the fit, flags, time."""
    flags = np.asarray(result.flags)
    yield (
        f"{len(flags)} sources, {result.fitted.sum()} fitted, bands {''.join(result.bands)}, "
        f"{deblending:.2f} s to deblend, {total:.2f} s in all"
    )
    reduced = result.reduced_chi2[np.isfinite(result.reduced_chi2)]
    if reduced.size:
        low, median, high = np.percentile(reduced, [10, 50, 90])
        yield f"reduced chi2 per source: median {median:.2f} (10-90%: {low:.2f}-{high:.2f})"
    yield f"flags: {_raised(result)}"


def _raised(result: DeblendResult) -> str:
    """Return the names of flags and the numbers of their sources, the most frequent first."""
    counts = Counter({flag.name: int(np.count_nonzero(np.asarray(result.flags) & flag.value)) for flag in Flag})
    raised = [f"{name} {count}" for name, count in counts.most_common() if count]
    return ", ".join(raised) + "   (`deblendrt flags` explains)" if raised else "none"


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that reports the name of each stage as the stage begins."""
    if quiet:
        yield lambda stage: None
    elif sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
        from tqdm import tqdm

        with tqdm(total=len(RUN_STAGES), bar_format="{desc:<12}|{bar:30}| {elapsed}", leave=False) as bar:

            def show(stage: str) -> None:
                bar.n = RUN_STAGES.index(stage)
                bar.set_description_str(stage)

            yield show
            bar.n = len(RUN_STAGES)
            bar.refresh()
    else:
        yield lambda stage: print(f"{stage} ...", file=sys.stderr, flush=True)
