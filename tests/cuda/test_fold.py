"""Folding: kernel against reference, both against the engine's; Gram matrices."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import needs_shim
from shim import ShimDevice
from tolerances import relative_error
from toy_model import gaussian_psf

from deblendrt.cuda import reference_fold
from deblendrt.cuda.device import DeviceArray
from deblendrt.cuda.fold import fold, scratch_shape
from deblendrt.cuda.gram import gram
from deblendrt.engine import psf
from deblendrt.engine.deblender import PAD, Deblender
from deblendrt.engine.deblender import window as bundle_window
from deblendrt.engine.folded import FoldedBasis

PRECISION = 1e-6  # of the maximum: float32 transforms against float32 sums, 3e-7 and 2e-7
CPU_GRAM = 3e-6  # the same of the engine's Gram matrices, which are sums of thousands of float32 products
NAMES = ("phi", "phi_t", "outer", "outer_t", "gram", "full_gram")


def on_host(basis: np.ndarray, how: psf.Folding, at_once: int) -> dict[str, np.ndarray]:
    """By the reference."""
    arrays = shapes(basis, how)
    scratch = np.empty(scratch_shape(len(basis), how.full_window, at_once), np.float32)
    out = {name: None if shape is None else np.empty(shape, np.float32) for name, shape in arrays.items()}
    reference_fold.fold(pixels_first(basis), how.kernel(), scratch, *(out[name] for name in NAMES), **sizes(how))
    return {name: array for name, array in out.items() if array is not None}


def on_shim(basis: np.ndarray, how: psf.Folding, at_once: int, *, reverse: bool = False) -> dict[str, np.ndarray]:
    """By the kernels."""
    device = ShimDevice(reverse=reverse)
    arrays = shapes(basis, how)
    scratch = device.empty(scratch_shape(len(basis), how.full_window, at_once), np.float32)
    out: dict[str, DeviceArray | None] = {name: None if shape is None else device.empty(shape, np.float32)
                                          for name, shape in arrays.items()}
    fold(device, device.upload(pixels_first(basis)), device.upload(how.kernel()), scratch,
         *(out[name] for name in NAMES), **sizes(how))  # type: ignore[arg-type]
    return {name: device.download(array) for name, array in out.items() if array is not None}


def pixels_first(basis: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(basis.astype(np.float32).transpose(1, 2, 0))


def sizes(how: psf.Folding) -> dict[str, int]:
    return {"window": how.window, "full_window": how.full_window, "binning": how.binning}


def shapes(basis: np.ndarray, how: psf.Folding) -> dict[str, tuple[int, ...] | None]:
    n_band, n_basis, n_pixel = len(how.norm), len(basis), how.window**2
    n_cell = (how.full_window // how.binning) ** 2
    outskirts = how.window < how.full_window
    return {"phi": (n_band, n_basis, n_pixel), "phi_t": (n_band, n_pixel, n_basis),
            "outer": (n_band, n_basis, n_cell) if outskirts else None,
            "outer_t": (n_band, n_cell, n_basis) if outskirts else None,
            "gram": (n_band, n_basis, n_basis), "full_gram": (n_band, n_basis, n_basis)}


def compare(result: dict[str, np.ndarray], expected: dict[str, np.ndarray] | FoldedBasis) -> None:
    for name, array in result.items():
        other = expected[name] if isinstance(expected, dict) else getattr(expected, name)
        from_engine = name in ("gram", "full_gram") and isinstance(expected, FoldedBasis)
        assert relative_error(array, other) < (CPU_GRAM if from_engine else PRECISION), name


def psfs(*fwhm: float, size: int = 9) -> np.ndarray:
    return np.array([gaussian_psf(f, size) for f in fwhm])


# basis (functions, side), PSFs, options of folding, bands at a time
CASES = {
    "one": ((1, 1), psfs(3.0), {"pad": 0}, 1),
    "no outskirts": ((15, 11), psfs(3.0, 4.0, 3.5), {"pad": 3}, 2),
    "outskirts": ((70, 15), psfs(3.0, 4.0), {"pad": 4, "window": 11, "binning": 3}, 2),
    "a row longer than a chunk": ((5, 37), psfs(3.0), {"pad": 5, "window": 21, "binning": 1}, 3),
    "a PSF that is narrow and off centre": ((9, 9), np.roll(psfs(1.6, 3.0), 1, 2), {"pad": 2}, 1),
    "a grid that just holds the window": ((4, 9), psfs(2.5, size=3), {"pad": 30, "window": 9, "binning": 1}, 1),
}


@needs_shim
@pytest.mark.parametrize("case", CASES)
def test_cases(case: str) -> None:
    (n_basis, size), images, options, at_once = CASES[case]
    basis = np.random.default_rng(0).standard_normal((n_basis, size, size)).astype(np.float32)
    how = psf.folding(size, images, **options)
    expected = on_host(basis, how, at_once)
    compare(expected, psf.fold(basis, images, **options))
    result = on_shim(basis, how, at_once)
    compare(result, expected)
    again = on_shim(basis, how, 1, reverse=True)
    for name, array in result.items():
        np.testing.assert_array_equal(array, again[name])
        assert name not in ("gram", "full_gram") or (array == array.transpose(0, 2, 1)).all()
    np.testing.assert_array_equal(result["phi"].transpose(0, 2, 1), result["phi_t"])


@needs_shim
@pytest.mark.parametrize("which", ["toy_deblender", "wide_toy_deblender"])
def test_bundles(which: str, request: pytest.FixtureRequest) -> None:
    deblender: Deblender = request.getfixturevalue(which)
    bundle = deblender.bundle
    images = np.asarray(bundle.psf, np.float64)
    how = psf.folding(bundle.full_basis.shape[1], images, bundle.reference_psf_sigma, PAD,
                      window=bundle_window(bundle), binning=bundle.outskirts_binning)
    compare(on_shim(bundle.full_basis, how, 2), deblender.fold(None))


@needs_shim
def test_bits_do_not_depend_on_other_bands() -> None:
    basis = np.random.default_rng(1).standard_normal((6, 9, 9)).astype(np.float32)
    images = psfs(3.0, 3.5, 4.0)
    together = on_shim(basis, psf.folding(9, images, pad=3), 3)
    alone = on_shim(basis, psf.folding(9, images[1:2], pad=3), 1)
    for name, array in alone.items():
        np.testing.assert_array_equal(array[0], together[name][1])


def test_folding_is_what_fold_uses() -> None:
    """The kernel is the transform's, and its description that of the folded basis."""
    basis = np.random.default_rng(2).standard_normal((3, 9, 9))
    how, folded = psf.folding(9, psfs(1.7, 3.0), pad=3), psf.fold(basis, psfs(1.7, 3.0), pad=3)
    n = how.transform.shape[1]
    assert how.kernel().shape == (2, n, n)
    assert relative_error(np.fft.rfft2(how.kernel()).real, how.transform.real) < PRECISION
    np.testing.assert_allclose(how.kernel().sum((1, 2)), 1, rtol=PRECISION)  # flux is kept
    assert np.unravel_index(how.kernel()[1].argmax(), (n, n)) == (3, 3)
    for name in ("fwhm", "residual", "narrow", "norm", "window", "full_window", "binning"):
        np.testing.assert_array_equal(getattr(how, name), getattr(folded, name))


@needs_shim
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 15, 441), (3, 37, 100), (1, 16, 32)])
def test_gram(shape: tuple[int, ...]) -> None:
    rows = (np.random.default_rng(0).standard_normal(shape) + 1).astype(np.float32)
    expected = np.empty((shape[0], shape[1], shape[1]), np.float32)
    reference_fold.gram(rows, expected)
    results = []
    for reverse in (False, True):
        device = ShimDevice(reverse=reverse)
        out = device.empty(expected.shape, np.float32)
        gram(device, device.upload(rows), out)
        results.append(device.download(out))
    np.testing.assert_allclose(results[0], expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())
    np.testing.assert_array_equal(*results)


@needs_shim
def test_the_comparison_can_fail() -> None:
    basis = np.random.default_rng(3).standard_normal((3, 9, 9)).astype(np.float32)
    result = on_shim(basis, psf.folding(9, psfs(3.0), pad=3), 1)
    with pytest.raises(AssertionError):
        compare(result, psf.fold(basis, psfs(3.001), pad=3))
