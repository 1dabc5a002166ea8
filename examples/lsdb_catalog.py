"""Deblend the objects of an LSDB catalogue: a cutout each, neighbours included, one row an object.

    python examples/lsdb_catalog.py

Needs LSDB (pip install lsdb). The catalogue and its archive of images are made from the example image here; you write
`cutouts`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lsdb
import numpy as np
import pandas as pd
from astropy.wcs import WCS
from distributed import Client

from deblendrt.engine import ImageFile, read_image
from deblendrt.engine.adapters.dask import PartitionDeblender

IMAGE = Path(__file__).resolve().parent / "lsst_blend.fits"
HALF = 30  # pixel: a cutout holds the object's own stamp and the neighbours that reach into it


def sky() -> WCS:
    """Return a place on the sky, since the example image has none."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (150.0, 2.2), (60.5, 60.5), (-0.2 / 3600, 0.2 / 3600)
    return wcs


def table(image: ImageFile) -> pd.DataFrame:
    """Return a catalogue with ra, dec [degree]."""
    ra, dec = sky().all_pix2world(*image.centers.T, 0)
    return pd.DataFrame({"object_id": np.arange(len(ra)), "ra": ra, "dec": dec})


def cutouts(part: pd.DataFrame) -> list[dict | None]:
    """One scene for each row of a partition: the object first, then its neighbours. None: there is no image."""
    image = read_image(IMAGE)  # your archive: an image service, a butler, files
    own = np.column_stack(sky().all_world2pix(part["ra"], part["dec"], 0))
    scenes: list[dict | None] = []
    for x, y in own:
        x0, y0 = max(round(x) - HALF, 0), max(round(y) - HALF, 0)
        here = np.s_[:, y0 : round(y) + HALF + 1, x0 : round(x) + HALF + 1]
        pixels = image.image[here]
        if not pixels.size:
            scenes.append(None)
            continue
        near = image.centers - [x0, y0]
        inside = (near > 0).all(1) & (near < [pixels.shape[2] - 1, pixels.shape[1] - 1]).all(1)
        other = np.hypot(*(image.centers - [x, y]).T) > 0.5
        scenes.append({"image": pixels, "variance": image.variance[here], "psf": image.psf, "bands": image.bands,
                       "centers": np.concatenate([[[x - x0, y - y0]], near[inside & other]])})
    return scenes


def main(out: str | None = None) -> None:
    """Make a catalogue, deblend it on two worker processes, and write the result as a catalogue if asked."""
    catalog = lsdb.from_dataframe(table(read_image(IMAGE)), catalog_name="objects")
    deblend = PartitionDeblender(cutouts, keep=["object_id", "ra", "dec"], first_only=True)
    objects = catalog.map_partitions(deblend, meta=deblend.make_meta(catalog.meta))  # nothing runs yet
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        print(f"{catalog.name}: {len(catalog)} objects, {len(client.nthreads())} workers")
        print(objects.compute()[["object_id", "ra", "dec", "flux_i", "flux_err_i", "flags", "error"]])
        if out is not None:
            objects.write_catalog(out, catalog_name="deblended")


if __name__ == "__main__":
    main(*sys.argv[1:])
