"""The whole engine on a device, the shim or a GPU: the same answers as on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shim import ShimDevice, missing
from toy_model import ToyModel, gaussian_psf, make_problem
from toy_scenes import FIELDS, VARIANCE, make_scene

from deblendrt.cuda.driver.device import DeviceError, OutOfDeviceMemory
from deblendrt.engine.compute.cuda.streams import DevicePool, device_runtime
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene import batches
from deblendrt.engine.scene.psf.field import CellPsf
from deblendrt.engine.solve import constants, descent, device_descent

OFF = {"default": 5e-3, "hard": 2e-2}
"""Largest differences of fluxes, in units of the error. The last bits of a float32 image move the fluxes of near pairs,
as they decide whether the last step is taken: on the CPU, pixels rounded at 6e-8 move fluxes by up to 1.5e-3 (above
1e-3 in two of seven batches), pixels rounded at 3e-7 by 3.6e-3. "hard" is for degenerate pairs: with the plain
likelihood, and for point sources on galaxies."""


@pytest.fixture(scope="module", params=[
    pytest.param("shim", marks=pytest.mark.skipif(missing() is not None, reason=str(missing()))),
    pytest.param("cuda", marks=pytest.mark.gpu)])
def on_device(request: pytest.FixtureRequest) -> Callable[..., Deblender]:
    """A function that makes a copy of a deblender on a device."""

    def make(like: Deblender, n_stream: int = 1, **options: Any) -> Deblender:
        if request.param == "cuda":
            return Deblender.load(like.bundle.path, device="cuda")
        pool = DevicePool.open(like.bundle, lambda: ShimDevice(**options), n_stream)
        return Deblender(like.bundle, like.runtime, pool)

    return make


def assert_same_answers(a: Any, b: Any, off: float = OFF["default"]) -> None:
    """Fluxes within `off` of their errors, flags equal."""
    known = np.isfinite(b.flux)
    assert (np.isfinite(a.flux) == known).all()
    assert (np.abs(a.flux - b.flux)[known] < off * b.flux_err[known]).all()
    np.testing.assert_array_equal(a.flags, b.flags)


def test_same_answers(on_device: Callable[..., Deblender], toy_deblender: Deblender, batch: Any) -> None:
    images, centers = batch
    expected = toy_deblender.deblend_batch(images, centers, variance=VARIANCE, psf="nominal")
    assert_same_answers(on_device(toy_deblender).deblend_batch(images, centers, variance=VARIANCE,
                                                               psf="nominal"), expected)


def test_blends_that_conjugate_gradients_solve(on_device: Callable[..., Deblender], toy_deblender: Deblender,
                                               batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, centers = (list(a[:3]) for a in batch)
    monkeypatch.setattr(constants, "MAX_DENSE", 1)
    results = [d.deblend_batch(images, centers, variance=VARIANCE, n_iteration=4, psf="nominal")
               for d in (on_device(toy_deblender), toy_deblender)]
    assert_same_answers(*results)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_sources_that_are_the_same(toy_deblender: Deblender, batch: Any) -> None:
    """Identical sources take identical steps, and the same steps as on the host."""
    image, centers = batch[0][0], batch[1][0]
    problem, latent, floor = make_problem(toy_deblender, image, np.concatenate([centers, centers[:1]]))
    latent[-1], floor[-1] = latent[0], floor[0]
    _, state, progress = descent.descend(problem, latent, floor, [0.1, 0.01, 0.0])
    with DevicePool.open(toy_deblender.bundle, ShimDevice, 1).stream() as stream:
        on_device = dataclasses.replace(problem, device=stream, runtime=stream.runtime)
        _, found = device_descent.descend(on_device, latent, floor, [0.1, 0.01, 0.0], None, None)
    for result in (state.latent, found.latent):
        np.testing.assert_array_equal(result[0], result[-1])
    np.testing.assert_allclose(found.latent, state.latent, atol=2e-3)
    np.testing.assert_allclose(found.damping, progress.damping)


def test_bits_do_not_depend_on_the_batch(on_device: Callable[..., Deblender], toy_deblender: Deblender,
                                         batch: Any) -> None:
    images, centers = batch
    deblender = on_device(toy_deblender)
    together = deblender.deblend_batch(images, centers, variance=VARIANCE, psf="nominal")
    again = on_device(toy_deblender, reverse=True).deblend_batch(images, centers, variance=VARIANCE, psf="nominal")
    alone = deblender.deblend_batch(images[2:3], centers[2:3], variance=VARIANCE, psf="nominal")
    rows = together.sources(2)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(together, name))
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[rows])


def test_threads_share_streams(on_device: Callable[..., Deblender], toy_deblender: Deblender, batch: Any,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than streams, several chunks each: the same bits."""
    images, centers = batch
    monkeypatch.setattr(batches, "CHUNK", 4)
    deblender = on_device(toy_deblender, n_stream=2)
    one, four = (deblender.deblend_batch(images, centers, variance=VARIANCE, n_iteration=2, n_threads=n, psf="nominal")
                 for n in (1, 4))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(four, name))


@pytest.mark.parametrize("options", [{"solver": "adam", "n_iteration": 10}, {"robust": False}, {"kind": "star"},
                                     {"n_iteration": 0}, {"start": "linear", "n_iteration": 3}, {"kind": "auto"},
                                     {"find_missed": True, "n_iteration": 3}], ids=str)
def test_options(on_device: Callable[..., Deblender], toy_deblender: Deblender, batch: Any,
                 options: dict[str, Any]) -> None:
    images, centers = (list(a[:3]) for a in batch)
    results = [d.deblend_batch(images, centers, variance=VARIANCE, psf="nominal", **options)
               for d in (on_device(toy_deblender), toy_deblender)]
    hard = options.get("kind") == "star" or not options.get("robust", True)
    assert_same_answers(*results, OFF["hard" if hard else "default"])


def test_outskirts_and_several_psfs(on_device: Callable[..., Deblender], wide_toy_deblender: Deblender,
                                    wide_toy_model: ToyModel) -> None:
    """Two cells of different PSFs in one image, so that bases are mixed; large galaxies in both."""
    anchors = [[14, 16], [30, 20], [60, 30], [70, 48]]
    image, centers, _ = make_scene(wide_toy_deblender, wide_toy_model, anchors, (64, 90))
    psfs = [[gaussian_psf(fwhm, 13)[None].repeat(3, 0) for fwhm in (3.6, 4.1)]]
    psf = CellPsf(psfs, [0, 45, 90], [0, 64])
    results = [d.deblend_batch(image, centers, variance=VARIANCE, psf=psf)
               for d in (on_device(wide_toy_deblender), wide_toy_deblender)]
    assert results[1].extended.any()
    assert_same_answers(*results)


def test_model_on_device(on_device: Callable[..., Deblender], toy_deblender: Deblender, batch: Any) -> None:
    images, centers = (list(a[:2]) for a in batch)
    deblender = on_device(toy_deblender)
    result = deblender.deblend_batch(images, centers, variance=VARIANCE, n_iteration=1, psf="nominal")
    for k in range(2):
        image = deblender.model_on_device(result, k)
        assert image.shape == images[k].shape
        assert "data" in image.__cuda_array_interface__
        assert deblender.pool is not None
        with deblender.pool.stream() as work:
            np.testing.assert_allclose(work.device.download(image), result.model(k), atol=1e-4)
    with pytest.raises(DeviceError, match=r"result\.model"):
        toy_deblender.model_on_device(result, 0)


def test_unknown_runtime(toy_deblender: Deblender) -> None:
    with pytest.raises(ValueError, match="runtime: expected"):
        device_runtime("torch")


def test_out_of_memory_halves_the_batch(on_device: Callable[..., Deblender], toy_deblender: Deblender, batch: Any,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    images, centers = (10 * list(a) for a in batch)
    deblender = on_device(toy_deblender)

    def run(**options: Any) -> DeblendResult:
        return deblender.deblend_batch(images, centers, variance=VARIANCE, n_iteration=0, start="linear", robust=False,
                                       psf="nominal", **options)

    expected = run()
    assert deblender.pool is not None
    with deblender.pool.stream() as work:
        work.clear()
        limit = work.device.used + 1_000_000
    with pytest.raises(OutOfDeviceMemory, match=r"scene \d+ is too large for the device"):
        run(memory_limit=limit)
    n_scene = []
    solve = device_descent.solve
    monkeypatch.setattr(device_descent, "solve", lambda buffers, *rest: (
        n_scene.append(len(buffers.problem.data)), solve(buffers, *rest))[1])
    for _ in range(12):  # up to what one scene takes, less than all of them do
        try:
            limited = run(memory_limit=limit)
            break
        except OutOfDeviceMemory:
            limit *= 1.5
    assert max(n_scene[-2:]) < len(images)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(limited, name), getattr(expected, name))
