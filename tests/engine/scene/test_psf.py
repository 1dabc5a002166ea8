import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FLOAT32, relative_error

from deblendrt.engine.compute import folding
from deblendrt.engine.compute.folding import NARROW_RESIDUAL, fold, reference_transform
from deblendrt.engine.scene.psf.images import normalize_psf, psf_fwhm, psf_key

SIZE = 41  # stamp
TOLERANCE = {
    # relative L2 against a sum in pixel space: float32 of phi, and a galaxy of sigma 2 pixels beyond Nyquist
    "well sampled": 1e-5,
    # GalSim, PSF image cut to 41 pixels: normalising puts the light from beyond the cut inside
    "galsim moffat": 1e-4,
    "galsim kolmogorov": 6e-3,
}


def grid(size):
    y, x = np.mgrid[:size, :size] - size // 2
    return x, y


def gaussian(size, covariance, x0=0.0, y0=0.0):
    """Return a Gaussian of unit flux, sampled at pixel centres."""
    x, y = grid(size)
    d = np.stack([x - x0, y - y0], -1)
    inverse = np.linalg.inv(covariance)
    return np.exp(-0.5 * np.einsum("...i,ij,...j", d, inverse, d)) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))


def ellipse(sigma, e=0.0, angle=0.0):
    """Return the covariance of an elliptical Gaussian."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rotation @ np.diag([sigma**2 * (1 + e), sigma**2 * (1 - e)]) @ rotation.T


def gaussian_psf(fwhm, size=41, e=0.0, angle=0.0):
    image = gaussian(size, ellipse(fwhm / np.sqrt(8 * np.log(2)), e, angle))
    return image / image.sum()


def moffat_psf(fwhm, beta, size=41, e=0.0):
    x, y = grid(size)
    radius = 0.5 * fwhm / np.sqrt(2 ** (1 / beta) - 1)
    image = (1 + ((x * (1 + e)) ** 2 + (y * (1 - e)) ** 2) / radius**2) ** -beta
    return image / image.sum()


# Galaxies as sums of Gaussians: (flux, covariance, x0, y0); convolution with a Gaussian adds covariances.
GALAXY = [(0.5, ellipse(2.0, 0.4, 0.7), 0.3, -0.2), (0.3, ellipse(3.0, 0.2, 2.0), 0.3, -0.2), (0.2, ellipse(1.8), 1, 1)]


def galaxy(size, extra):
    return sum(flux * gaussian(size, covariance + extra, x0, y0) for flux, covariance, x0, y0 in GALAXY)


def convolve_directly(image, kernel):
    """Convolve by a sum over the kernel's pixels. The image keeps its size."""
    half = len(kernel) // 2
    padded = np.pad(image, half)
    n = len(image)
    out = np.zeros_like(image)
    for j in range(len(kernel)):
        for i in range(len(kernel)):
            out += kernel[j, i] * padded[2 * half - j : 2 * half - j + n, 2 * half - i : 2 * half - i + n]
    return out


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("fwhm", [3.0, 3.7, 4.5, 6.0])
@pytest.mark.parametrize(("e", "angle"), [(0.0, 0.0), (0.25, 0.6)])
def test_gaussian_psf_against_the_closed_form(fwhm, e, angle):
    folded = fold(galaxy(SIZE, np.eye(2))[None], gaussian_psf(fwhm, e=e, angle=angle)[None])
    expected = galaxy(SIZE + 10, ellipse(fwhm / np.sqrt(8 * np.log(2)), e, angle))
    assert folded.window == SIZE + 10
    assert folded.half == folded.window // 2
    assert relative(folded.phi.reshape(expected.shape), expected) < TOLERANCE["well sampled"]
    assert folded.residual[0] < 1e-12


@pytest.mark.parametrize("psf", [moffat_psf(3.0, 2.5), moffat_psf(4.0, 4.765, e=0.1), moffat_psf(6.0, 3.0, size=61),
                                 moffat_psf(3.5, 3.0, size=15), gaussian_psf(4.0)],
                         ids=["beta2.5", "elliptical", "wide", "cut", "gaussian"])
def test_any_psf_against_a_sum_in_pixel_space(psf):
    # The truth uses only the PSF's pixels, and a galaxy without PSF on a frame that holds all of its light.
    expected = convolve_directly(galaxy(SIZE + 10, np.zeros((2, 2))), psf)
    folded = fold(galaxy(SIZE, np.eye(2))[None], psf[None])
    image = folded.phi.reshape(expected.shape)
    inner = slice(5, -5)
    assert relative(image[inner, inner], expected[inner, inner]) < TOLERANCE["well sampled"]
    assert not folded.narrow[0]


def test_comparison_can_fail():
    folded = fold(galaxy(SIZE, np.eye(2))[None], gaussian_psf(4.02)[None])
    expected = galaxy(SIZE + 10, ellipse(4.0 / np.sqrt(8 * np.log(2))))
    assert relative(folded.phi.reshape(expected.shape), expected) > 10 * TOLERANCE["well sampled"]


@pytest.mark.parametrize("q", [15, 21, 41, 77])
@pytest.mark.parametrize("pad", [0, 5, 9])
def test_nothing_wraps_around(q, pad):
    # A stamp of noise reaches its border everywhere. The truth uses the kernel on a grid with room for four stamps.
    rng = np.random.default_rng(q + pad)
    stamp = rng.normal(size=(13, 13))
    psf = gaussian_psf(3.5, size=q)
    n = 256
    room = np.zeros((n, n))
    room[:q, :q] = psf
    axis = reference_transform(n, 1.0)
    kernel = np.fft.rfft2(np.roll(room, (-(q // 2),) * 2, (0, 1))) / (axis[:, None] * axis[: n // 2 + 1])
    kernel *= np.minimum(1, folding.GAIN_CAP / np.abs(kernel))
    room = np.zeros((n, n))
    room[100:113, 100:113] = stamp
    low, high = 100 - pad, 113 + pad
    expected = np.fft.irfft2(np.fft.rfft2(room) * kernel, s=(n, n))[low:high, low:high]
    image = fold(stamp[None], psf[None], pad=pad).phi.reshape(expected.shape)
    # The kernel of a PSF that is cut where it is bright rings at the highest frequencies, farther than any grid. White
    # noise shows this at q = 9 and below (1e-3 to 5e-2), the galaxy of this file does not (1e-7).
    assert relative(image, expected) < 5e-6


def test_flux_is_conserved():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(4, 15, 15)) + 0.5
    psf = np.stack([moffat_psf(3.5, 3.0), gaussian_psf(5.0)])
    folded = fold(basis, psf, pad=25)  # the window holds the whole stamp and PSF
    np.testing.assert_allclose(folded.phi.sum(2), np.broadcast_to(basis.sum((1, 2)), (2, 4)), rtol=1e-5)
    kernel = fold(np.ones((1, 1, 1)), psf[1:], pad=25)
    assert kernel.phi.sum() == pytest.approx(1.0, abs=1e-6)
    assert fold(basis, psf, pad=0).phi[0, 0].sum() < folded.phi[0, 0].sum()


def test_gram_and_transpose_belong_to_phi():
    rng = np.random.default_rng(1)
    psf = np.stack([gaussian_psf(f) for f in (3.0, 4.0, 5.0)])
    folded = fold(rng.normal(size=(6, 21, 21)), psf)
    assert (folded.n_band, folded.n_basis) == (3, 6)
    assert folded.phi.dtype == folded.phi_t.dtype == np.float32
    assert folded.phi_t.flags.c_contiguous
    np.testing.assert_array_equal(folded.phi_t, folded.phi.transpose(0, 2, 1))
    wide = folded.phi.astype(np.float64)
    assert relative_error(folded.gram, wide @ wide.transpose(0, 2, 1)) < FLOAT32
    assert relative_error(folded.gram, folded.gram.transpose(0, 2, 1)) < FLOAT32
    with pytest.raises(ValueError, match="read-only"):
        folded.phi[0, 0, 0] = 1


def test_outskirts_are_the_same_image():
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(3, 21, 21))
    psf = np.stack([gaussian_psf(f) for f in (3.0, 4.0)])
    whole = fold(basis, psf, pad=6)
    folded = fold(basis, psf, pad=5, window=15, binning=3)  # the margin becomes a whole number of cells
    assert (whole.window, folded.window, folded.full_window, folded.margin) == (33, 15, 33, 9)
    images = whole.phi.reshape(2, 3, 33, 33)
    np.testing.assert_array_equal(folded.phi.reshape(2, 3, 15, 15), images[:, :, 9:24, 9:24])
    np.testing.assert_array_equal(folded.outer.reshape(2, 3, 11, 11), images[:, :, 1::3, 1::3])
    np.testing.assert_array_equal(folded.outer_t, folded.outer.transpose(0, 2, 1))
    assert relative_error(folded.full_gram, whole.gram) < FLOAT32
    assert whole.outer.size == 0
    for wrong in ({"window": 14}, {"window": 35}, {"window": 15, "binning": 2}, {"window": 15, "binning": 5}):
        with pytest.raises(ValueError, match="window"):
            fold(basis, psf, pad=6, **wrong)


def test_a_band_depends_on_its_own_psf_only():
    rng = np.random.default_rng(2)
    basis = rng.normal(size=(3, 21, 21)).astype(np.float32)
    psf = np.stack([gaussian_psf(f) for f in (3.0, 4.0, 5.0)])
    together, permuted = fold(basis, psf), fold(basis, psf[::-1])
    np.testing.assert_array_equal(together.phi, permuted.phi[::-1])
    np.testing.assert_array_equal(together.phi[1], fold(basis, psf[1:2]).phi[0])
    np.testing.assert_array_equal(together.phi, fold(basis, psf).phi)


def test_reference_psf_folds_to_the_basis_itself():
    basis = np.random.default_rng(3).normal(size=(2, 21, 21))
    image = fold(basis, gaussian(41, np.eye(2))[None], pad=0).phi.reshape(basis.shape)
    np.testing.assert_allclose(image, basis, atol=3e-6)


def test_narrow_psf_is_reported_not_raised():
    psf = np.stack([gaussian_psf(f) for f in (1.5, 2.0, 2.3, 3.0)])
    folded = fold(galaxy(SIZE, np.eye(2))[None], psf)
    np.testing.assert_array_equal(folded.narrow, [True, True, False, False])
    assert folded.residual[0] > folded.residual[1] > NARROW_RESIDUAL
    # With the gain cap the image of a compact galaxy is still good.
    expected = galaxy(SIZE + 10, ellipse(2.0 / np.sqrt(8 * np.log(2))))
    assert relative(folded.phi[1, 0].reshape(expected.shape), expected) < 1e-3


def test_noise_in_the_psf_is_not_amplified():
    clean = gaussian_psf(4.0)
    noisy = clean + 1e-3 * clean.max() * np.random.default_rng(4).normal(size=clean.shape)
    noisy /= noisy.sum()
    folded = [fold(galaxy(SIZE, np.eye(2))[None], psf[None]) for psf in (clean, noisy)]
    assert relative(folded[1].phi, folded[0].phi) < 0.01
    assert not folded[1].narrow[0]


def test_norm_is_reported_and_taken_out():
    psf = np.stack([3.0 * gaussian_psf(3.0), gaussian_psf(4.0)])
    before = psf.copy()
    folded = fold(np.ones((1, 5, 5)), psf)
    np.testing.assert_allclose(folded.norm, [3, 1])
    np.testing.assert_array_equal(psf, before)
    np.testing.assert_allclose(folded.phi, fold(np.ones((1, 5, 5)), psf / np.array([3, 1])[:, None, None]).phi,
                               rtol=1e-5)


@pytest.mark.parametrize(("psf", "message"), [
    (np.ones((41, 41)), r"expected shape .* got \(41, 41\)"),
    (np.ones((2, 4, 4)), r"q odd, got \(2, 4, 4\)"),
    (np.ones((2, 5, 7)), r"got \(2, 5, 7\)"),
    (np.full((1, 5, 5), np.nan), "expected finite"),
    (np.zeros((1, 5, 5)), "positive sum"),
    (-np.ones((1, 5, 5)), "positive sum"),
])
def test_psf_of_the_wrong_form_raises(psf, message):
    with pytest.raises(ValueError, match=message):
        fold(np.ones((1, 5, 5)), psf)
    with pytest.raises(ValueError, match="kernel: "):
        normalize_psf(psf, "kernel")


@pytest.mark.parametrize("arguments", [{"basis": np.ones((5, 5))}, {"basis": np.ones((1, 4, 4))}, {"pad": -1},
                                       {"gain_cap": 0.5}, {"reference_sigma": 0.0}])
def test_fold_checks_its_arguments(arguments):
    with pytest.raises(ValueError, match="expected"):
        fold(**({"basis": np.ones((1, 5, 5)), "psf": gaussian_psf(3.0)[None]} | arguments))


@pytest.mark.parametrize("fwhm", [3.0, 3.5, 5.0, 8.0])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_fwhm(fwhm, shift):
    sigma = fwhm / np.sqrt(8 * np.log(2))
    image = gaussian(41, ellipse(sigma, 0.2, 0.3), shift, -shift)
    assert psf_fwhm(image) == pytest.approx(fwhm * (1 - 0.2**2) ** 0.25, rel=5e-3)
    assert psf_fwhm(7 * image) == pytest.approx(psf_fwhm(image))


@pytest.mark.parametrize("bad", [np.ones((2, 3, 3)), np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_fwhm_refuses_what_is_no_psf(bad):
    with pytest.raises(ValueError, match="psf"):
        psf_fwhm(bad)


@settings(deadline=None, max_examples=25)
@given(order=st.sampled_from("CF"), dtype=st.sampled_from(["<f8", ">f8"]), seed=st.integers(0, 9))
def test_key_depends_on_values_and_shape_alone(order, dtype, seed):
    psf = np.random.default_rng(seed).random((2, 9, 9))
    assert psf_key(np.array(psf, dtype=dtype, order=order)) == psf_key(psf)
    assert psf_key(psf[:, ::-1][:, ::-1]) == psf_key(psf)
    assert psf_key(psf.reshape(2, 3, 27)) != psf_key(psf)
    changed = psf.copy()
    changed[0, 0, 0] = np.nextafter(changed[0, 0, 0], 2)
    assert psf_key(changed) != psf_key(psf)


def test_against_galsim():
    galsim = pytest.importorskip("galsim")

    def draw(profile, size, method):
        return profile.drawImage(nx=size, ny=size, scale=1, method=method, offset=(0.3, -0.2), dtype=float).array

    psfs = {"galsim moffat": galsim.Moffat(4.765, fwhm=4.0).shear(g1=0.1),
            "galsim kolmogorov": galsim.Kolmogorov(fwhm=3.5)}
    galaxies = [galsim.Exponential(half_light_radius=3.0).shear(g1=0.2, g2=-0.3),
                galsim.DeVaucouleurs(half_light_radius=2.0, trunc=16.0).shear(g2=0.3)]
    basis = np.stack([draw(galsim.Convolve(g, galsim.Gaussian(sigma=1.0)), 53, "no_pixel") for g in galaxies])
    for name, profile in psfs.items():
        psf = profile.drawImage(nx=41, ny=41, scale=1, method="auto", dtype=float).array
        folded = fold(basis, psf[None])
        for image, g in zip(folded.phi[0], galaxies, strict=True):
            expected = draw(galsim.Convolve(g, profile), 53, "auto")
            assert relative(image.reshape(63, 63)[5:-5, 5:-5], expected) < TOLERANCE[name], name
