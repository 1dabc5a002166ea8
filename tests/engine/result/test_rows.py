"""Open rows: they take over the rows of others with their blends, and become a read-only result."""

from __future__ import annotations

import numpy as np
import pytest
from toy_model import N_BAND
from toy_scenes import VARIANCE

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.fields import QUANTITIES
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.result.rows import Rows
from deblendrt.engine.scene.scene import make_scenes
from deblendrt.engine.scene.settings import checked_settings
from deblendrt.engine.solve.constants import ITERATIONS

CENTERS = np.array([[12.0, 10.0], [20.0, 15.0], [8.0, 25.0], [30.0, 22.0]])


def make_rows(deblender: Deblender, shift: int = 0) -> Rows:
    """Rows of one scene, blends 0 (sources 0, 2, 3) and 1 (source 1), every solved quantity its row's number."""
    bundle = deblender.bundle
    settings = checked_settings("gauss_newton", None, "encoder", True, True, "fit", 0.2, 1.2, 0.1, 1, None,
                                iterations=ITERATIONS)
    scenes = make_scenes(np.zeros((N_BAND, 40, 50)), CENTERS + shift, bundle_bands=bundle.bands,
                         bundle_pixel_scale=bundle.pixel_scale, window_half=7, variance=VARIANCE)
    rows = Rows.empty(scenes, bundle, deblender.fold, settings)
    for i in range(len(CENTERS)):
        rows.write(np.array([i]), flux=np.full((1, N_BAND), i), chi2=np.array([i]), position=rows.center[[i]])
    rows.blend[:] = [0, 1, 0, 0]
    rng = np.random.default_rng(0)
    rows.covariances.update({k: rng.random((n, N_BAND, n, N_BAND)).astype(np.float32) for k, n in ((0, 3), (1, 1))})
    return rows


def test_adopted_rows_keep_their_numbers_and_blends(toy_deblender: Deblender) -> None:
    rows, solved = make_rows(toy_deblender, shift=3), make_rows(toy_deblender)
    rows.forget_blends(0)
    rows.flux[:] = np.nan
    rows.adopt(np.array([3, 1, 0]), solved, np.array([0, 1, 3]))
    np.testing.assert_array_equal(rows.flux[:, 0], [3, 1, np.nan, 0])
    np.testing.assert_array_equal(rows.position[[0, 1, 3]], CENTERS[[3, 1, 0]] + rows.anchor[[0, 1, 3]]
                                  - solved.anchor[[3, 1, 0]])
    assert rows.blend[[0, 1, 3]].tolist() == [0, 1, 0]
    members = [2, 0]  # of the old blend: source 3, now row 0, then source 0, now row 3
    np.testing.assert_array_equal(rows.covariances[0], solved.covariances[0][members][:, :, members])
    np.testing.assert_array_equal(rows.covariances[1], solved.covariances[1])


def test_a_result_numbers_its_blends_and_is_read_only(toy_deblender: Deblender) -> None:
    rows = make_rows(toy_deblender)
    rows.blend[:] = [2, -1, 2, 3]
    rows.covariances.clear()
    rows.covariances.update({3: np.ones((1, N_BAND, 1, N_BAND), np.float32),
                             2: np.zeros((2, N_BAND, 2, N_BAND), np.float32)})
    result = DeblendResult.of_rows(rows)
    assert result.blend.tolist() == [0, -1, 0, 1]
    assert [len(covariance) for covariance in result.blend_flux_cov] == [2, 1]
    for name in QUANTITIES:
        with pytest.raises(ValueError, match="read-only"):
            getattr(result, name)[...] = 0


def test_a_result_shows_what_becomes_of_the_callers_image(toy_deblender: Deblender) -> None:
    image = np.random.default_rng(1).normal(size=(N_BAND, 40, 50)).astype(np.float32)
    result = toy_deblender.deblend_batch(image, CENTERS, variance=VARIANCE, n_iteration=0, psf="nominal")
    before = result.residual(0)
    image += 1
    np.testing.assert_allclose(result.residual(0) - before, 1, atol=1e-4)
