"""A result does not depend on batch, chunks, threads or processes, and little on the order of the sources."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from toy_model import N_BAND, ToyModel, gaussian_psf
from toy_scenes import CONVERGED, VARIANCE, assert_close, digest, make_scene, rows

from deblendrt import engine
from deblendrt.engine import deblender as deblender_module
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene import batches
from deblendrt.engine.scene.flags import Flag

# --- batches, chunks and order


@pytest.mark.parametrize("solver", ["gauss_newton", "adam"])
def test_a_scene_has_its_own_bits(toy_deblender: Deblender, batch: Any, solver: str) -> None:
    images, centers = batch
    options: dict[str, Any] = {"variance": VARIANCE, "psf": "nominal", "solver": solver, "n_iteration": 10}
    together = toy_deblender.deblend_batch(images, centers, **options)
    assert digest(toy_deblender.deblend_batch(images, centers, **options)) == digest(together)  # twice the same
    order = np.random.default_rng(0).permutation(len(images))
    permuted = toy_deblender.deblend_batch([images[k] for k in order], [centers[k] for k in order], **options)
    for place, k in enumerate(order):
        alone = toy_deblender.deblend_batch(images[k], centers[k], **options)
        assert rows(together, k) == rows(permuted, place) == rows(alone, 0), f"scene {k}"
        assert together.objective[k] == permuted.objective[place] == alone.objective[0]
        np.testing.assert_array_equal(together.model(k), alone.model(0))


def test_chunks_and_threads_change_nothing(toy_deblender: Deblender, batch: Any,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    images, centers = batch
    whole = digest(toy_deblender.deblend_batch(images, centers, variance=VARIANCE, psf="nominal"))
    assert digest(toy_deblender.deblend_batch(images, centers, variance=VARIANCE, n_threads=2, psf="nominal")) == whole
    monkeypatch.setattr(batches, "CHUNK", 4)
    for n_threads in (1, 2, 5):
        assert digest(toy_deblender.deblend_batch(images, centers, variance=VARIANCE, n_threads=n_threads,
                                                  psf="nominal")) == whole


def test_psfs_of_their_own(toy_deblender: Deblender, batch: Any) -> None:
    """Scenes with several PSFs, some of them equal, are solved in a batch as they are alone."""
    images, centers = batch
    sharp, broad = (np.array([gaussian_psf(f + d) for f in (4.0, 3.6, 3.4)]) for d in (0.0, 0.8))
    psf = [sharp, broad, sharp.copy(), broad, sharp, broad]
    together = toy_deblender.deblend_batch(images, centers, variance=VARIANCE, psf=psf)
    assert len(together.folded) == 2
    for k, image in enumerate(images):
        alone = toy_deblender.deblend_batch(image, centers[k], variance=VARIANCE, psf=psf[k])
        assert rows(together, k) == rows(alone, 0)


def test_the_pool_of_folded_bases_is_bounded(toy_deblender: Deblender, scene: Any,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    local = Deblender(toy_deblender.bundle, toy_deblender.runtime)
    first = local.fold(None)
    assert local.fold(None) is first
    size = batches.FOLDED_TABLES * first.phi.nbytes  # three bands of three PSFs
    monkeypatch.setattr(deblender_module, "FOLDED_POOL", 2.5 * size)
    psfs = [np.array([gaussian_psf(3.5 + 0.1 * k + 0.01 * b) for b in range(N_BAND)]) for k in range(4)]
    for psf in psfs:
        local.fold(psf)
    assert len(local._folded) == 2
    assert local.fold(None) is not first
    image, centers, _ = scene
    for psf in psfs:  # a call with a limit leaves at most its share behind, and the basis that was at work
        local.deblend_batch(image, centers, variance=VARIANCE, psf=psf, n_iteration=0, memory_limit=1e9)
    expected = [local.deblend_batch(image, centers, variance=VARIANCE, psf=psf, n_iteration=0) for psf in psfs]
    monkeypatch.setattr(deblender_module, "POOL_SHARE", size / 1e9)
    got = [local.deblend_batch(image, centers, variance=VARIANCE, psf=psf, n_iteration=0, memory_limit=1e9)
           for psf in psfs]
    assert [digest(result) for result in got] == [digest(result) for result in expected]
    assert len(local._folded) <= 2


def test_permuting_the_sources(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    order = np.array([2, 0, 3, 1])
    plain = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    permuted = toy_deblender.deblend_batch(image, centers[order], variance=VARIANCE, n_iteration=CONVERGED,
                                           psf="nominal")
    np.testing.assert_array_equal(permuted.center, centers[order])
    assert_close(plain, permuted, order)


def test_padding_with_pixels_of_no_weight(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    plain = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    border = ((0, 0), (9, 4), (7, 12))
    mask = np.pad(np.zeros(image.shape, bool), border, constant_values=True)
    padded = toy_deblender.deblend_batch(np.pad(image, border, constant_values=1e5), centers + np.array([7, 9]),
                                         mask=mask, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    assert_close(plain, padded, shift=np.array([7, 9]))
    np.testing.assert_allclose(padded.scene_chi2, plain.scene_chi2, rtol=1e-4)
    assert padded.scene_n_pixel[0] == plain.scene_n_pixel[0]


def test_a_crowded_scene_runs(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    anchor = np.random.default_rng(3).integers(3, 97, (150, 2))
    image, centers, _ = make_scene(toy_deblender, toy_model, anchor, (100, 100), seed=4)
    result = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    assert result.fitted.all()
    for name in ("flux", "flux_err", "map_flux", "position", "latent"):
        assert np.isfinite(getattr(result, name)).all()
    assert result.scene_chi2[0] < 1.5 * result.scene_n_pixel[0]


# --- flux that no listed source explains


def test_an_unlisted_star(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    """Robust weights: the galaxy beside a star keeps its shape, with a flag, and a galaxy 3 arcsec away its flux."""
    anchor = [[20, 24], [35, 24]]  # 15 pixels, 3 arcsec
    image, centers, _ = make_scene(toy_deblender, toy_model, anchor, (50, 60), seed=2)
    star = np.array([gaussian_psf(f, 49) for f in (4.0, 3.6, 3.4)])
    with_star = image.astype(np.float64)
    with_star[:, 0:49, 0:38] += 2e5 * star[:, :, 11:]  # centred at (13, 24), 7 pixels from the first galaxy
    clean = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    robust = toy_deblender.deblend_batch(with_star, centers, variance=VARIANCE, psf="nominal")
    plain = toy_deblender.deblend_batch(with_star, centers, variance=VARIANCE, robust=False, psf="nominal")
    shape = np.linalg.norm(robust.latent[:, N_BAND + 2 :], axis=1)
    assert (shape < toy_deblender.bundle.shape_radius).all()
    assert robust.flags[0] & Flag.UNMODELLED_FLUX
    assert not clean.flags[0] & Flag.UNMODELLED_FLUX
    far = np.abs(robust.flux[1] / clean.flux[1] - 1)
    assert (far < 0.1).all()
    # without robust weights the flux changes: the test can fail
    assert np.abs(plain.flux[1] / clean.flux[1] - 1).max() > far.max()
    assert (np.abs(robust.position - centers) < 1.0).all()


# --- threads and processes


def test_two_threads_at_once(toy_deblender: Deblender, batch: Any) -> None:
    images, centers = batch
    fresh = Deblender(toy_deblender.bundle, toy_deblender.runtime)  # with an empty cache: folding races too
    expected = digest(toy_deblender.deblend_batch(images, centers, variance=VARIANCE, psf="nominal"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(fresh.deblend_batch, images, centers, variance=VARIANCE, psf="nominal")
                   for _ in range(6)]
        assert {digest(f.result()) for f in futures} == {expected}


def test_pickle(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    copy = pickle.loads(pickle.dumps(toy_deblender))
    expected = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")
    assert digest(copy.deblend_batch(image, centers, variance=VARIANCE, psf="nominal")) == digest(expected)
    result = pickle.loads(pickle.dumps(expected))
    assert digest(result) == digest(expected)
    np.testing.assert_array_equal(result.model(0), expected.model(0))


def test_spawned_processes(toy_deblender: Deblender, scene: Any) -> None:
    image, centers, _ = scene
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(toy_deblender.deblend_batch, image, centers, variance=VARIANCE,
                             psf="nominal").result(timeout=60)
    assert digest(result) == digest(toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal"))


FORKED = """
import multiprocessing, sys
import numpy as np
from deblendrt.engine.deblender import Deblender
rng = np.random.default_rng(0)
deblender = Deblender.load(sys.argv[1])
image = rng.normal(0, 1, (3, 90, 90)).astype(np.float32)
centers = rng.uniform(10, 80, (70, 2))
for x, y in centers.astype(int):
    image[:, y - 2 : y + 3, x - 2 : x + 3] += 30
flux = lambda _: deblender.deblend_batch(image, centers, variance=1.0, n_iteration=5).flux.tobytes()
parent = flux(None)
if sys.argv[2] == "fork":
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(flux(None)))
    child.start()
    assert queue.get() == parent
    child.join(30)
    assert child.exitcode == 0
import hashlib
print(hashlib.sha256(parent).hexdigest())
"""


def run_script(toy_deblender: Deblender, mode: str, threads: str) -> str:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", FORKED, str(toy_deblender.bundle.path), mode], env=environment,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_processes_and_threads_of_blas(toy_deblender: Deblender) -> None:
    """A process forked after the sessions were made, and one and two threads of BLAS: the same bits."""
    assert run_script(toy_deblender, "fork", "1") == run_script(toy_deblender, "no fork", "2")


def test_importing_the_engine_loads_nothing() -> None:
    """Importing does no work and imports no package that only training needs."""
    code = ("import sys; from deblendrt import engine; "
            "assert not {'onnxruntime', 'torch', 'astropy', 'numpy'} & set(sys.modules), 'package'; "
            "import deblendrt.engine.deblender; "
            "assert not {'torch', 'galsim', 'onnx', 'matplotlib'} & set(sys.modules), 'deblender'")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture(scope="module")
def shipped() -> Deblender:
    return Deblender.load()


@pytest.mark.parametrize("solver", ["gauss_newton", "adam"])
def test_the_shipped_model_keeps_its_bits(shipped: Deblender, solver: str) -> None:
    """The matrices of the shipped model are large: a product might be divided differently in a batch."""
    rng = np.random.default_rng(0)
    n_band = len(shipped.bundle.bands)
    sigma = np.asarray(shipped.bundle.sky_sigma)
    images = [rng.normal(0, sigma[:, None, None], (n_band, 70, 70)) for _ in range(3)]
    centers = [rng.uniform(10, 60, (n, 2)) for n in (9, 1, 30)]
    for image, center in zip(images, centers, strict=True):
        for x, y in center.astype(int):
            image[:, y - 2 : y + 3, x - 2 : x + 3] += 20 * sigma[:, None, None]
    together = shipped.deblend_batch(images, centers, variance=sigma**2, solver=solver, n_iteration=5, psf="nominal")
    for k in range(3):
        alone = shipped.deblend_batch(images[k], centers[k], variance=sigma**2, solver=solver, n_iteration=5,
                                      psf="nominal")
        assert rows(together, k) == rows(alone, 0)
    np.testing.assert_array_equal(
        engine.deblend_batch(images[0], centers[0], variance=sigma**2, solver=solver, n_iteration=5,
                             psf="nominal").flux,
        together.flux[together.sources(0)])
