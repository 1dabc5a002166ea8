"""The adapter with lsst.images, if it is installed (Python 3.12 or newer, perf/embedding/rubin/lsst_images.txt)."""

from __future__ import annotations

import numpy as np
import pytest

from deblendrt.engine.adapters import rubin
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.files.fits import read_image

lsst_images = pytest.importorskip("lsst.images", reason="lsst.images is not installed: perf.embedding.rubin has it")


def test_cell_coadds_come_and_go() -> None:
    from perf.embedding.rubin.lsst_images import BANDS, XY0, coadds

    scene = read_image("examples/lsst_blend.fits")
    centers = np.asarray(scene.centers)
    taken = rubin.read_exposures(list(coadds(scene, {"r": [(1, 1)]}).values()), centers + XY0)
    assert taken.bands == BANDS
    assert taken.psf is not None
    assert taken.psf.known.shape == (3, 3)
    assert len(taken.lost) == 1
    assert "BoundsError" in taken.lost[0]
    result = taken.deblend(Deblender.load("lsst"), n_iteration=3)
    assert result.fitted.all()
    image = taken.model_images(result)["i"]
    assert isinstance(image, lsst_images.Image)
    assert (image.bbox.x.start, image.bbox.y.start) == XY0
