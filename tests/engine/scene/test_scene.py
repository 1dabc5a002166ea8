import numpy as np
import pytest
from astropy import units as u
from hypothesis import given, settings
from hypothesis import strategies as st

from deblendrt.engine.scene.flags import Flag
from deblendrt.engine.scene.images import estimate_variance
from deblendrt.engine.scene.scene import make_scenes
from deblendrt.engine.scene.windows import Windows, anchor_pixels, too_close

BANDS = ("u", "g", "r", "i")
MODEL = {"bundle_bands": BANDS, "bundle_pixel_scale": 0.2, "window_half": 4}
CENTER = [(10.0, 8.0)]
SHAPE = (4, 20, 24)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape or SHAPE)


def one(image=None, centers=CENTER, **options):
    options = MODEL | {"variance": 1.0} | options
    (scene,) = make_scenes(noise() if image is None else image, centers, **options)
    return scene


def names(scene, i=0):
    return {flag.name for flag in Flag if scene.flags[i] & flag}


def same(a, b):
    for field in ("image", "inverse_variance", "centers", "flags", "band_present"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
        assert getattr(a, field).dtype == getattr(b, field).dtype
    assert (a.psf is None) == (b.psf is None)
    if a.psf is not None:
        np.testing.assert_array_equal(a.psf, b.psf)


def psf_images(n_band=4, q=7, seed=1):
    """Random images of sum one, each point-symmetric, so that they are centred."""
    radius = np.hypot(*np.mgrid[-(q // 2) : q // 2 + 1, -(q // 2) : q // 2 + 1])
    image = np.exp(-radius) * np.random.default_rng(seed).uniform(0.5, 1, (n_band, q, q))
    image += image[:, ::-1, ::-1]
    return image / image.sum((1, 2), keepdims=True)


def test_plain_scene():
    image = noise()
    scene = one(image, variance=4.0)
    np.testing.assert_array_equal(scene.image, image.astype(np.float32))
    np.testing.assert_array_equal(scene.inverse_variance, np.full(SHAPE, 0.25, np.float32))
    assert scene.image.flags.c_contiguous
    assert scene.shape == SHAPE[1:]
    assert scene.n_source == 1
    assert (scene.psf, names(scene)) == (None, set())
    assert scene.band_present.all()


# ---- forms of input


@settings(deadline=None, max_examples=60)
@given(dtype=st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<i2", ">i4", "u1", "f2"]), order=st.sampled_from("CF"),
       flip=st.booleans(), n_y=st.integers(1, 9), n_x=st.integers(1, 9), n_source=st.integers(0, 3),
       seed=st.integers(0, 99))
def test_any_type_and_memory_layout_gives_the_same_scene(dtype, order, flip, n_y, n_x, n_source, seed):
    rng = np.random.default_rng(seed)
    plain = rng.integers(0, 99, size=(4, n_y, n_x))
    image = np.array(plain, dtype=dtype, order=order)
    variance = np.array(plain + 1, dtype=dtype, order=order)
    if flip:  # not contiguous
        image, variance = (np.repeat(a[..., ::-1], 2, -1)[..., ::-2] for a in (image, variance))
    centers = rng.uniform(-1, 9, size=(n_source, 2))
    before = image.copy(), variance.copy(), centers.copy()
    scene = one(image, centers.tolist(), variance=variance)
    same(scene, one(plain.astype(np.float64), centers, variance=(plain + 1.0)))
    same(scene, one(plain.tolist(), [tuple(c) for c in centers], variance=(plain + 1).tolist()))
    assert scene.image.dtype == np.dtype(np.float32)
    assert scene.image.dtype.isnative
    for array, copy in zip((image, variance, centers), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(BANDS), n=st.integers(1, 4), as_text=st.booleans(), seed=st.integers(0, 99))
def test_bands_are_matched_by_name(order, n, as_text, seed):
    chosen = list(order)[:n]
    image, variance = noise(seed=seed), np.random.default_rng(seed).random(SHAPE) + 0.5
    mask = np.random.default_rng(seed).random(SHAPE) < 0.2
    image[0, 0, 0] = np.nan
    index = [BANDS.index(name) for name in chosen]
    psf = psf_images()
    scene = one(image[index], bands="".join(chosen) if as_text else chosen, variance=variance[index], mask=mask[index],
                psf=psf[index], background=np.arange(4.0)[index], zero_point=np.array([30.0, 31, 27, 28])[index])
    straight = sorted(index)
    expected = one(image[straight], bands=[BANDS[b] for b in straight], variance=variance[straight],
                   mask=mask[straight], psf=psf[straight], background=np.arange(4.0)[straight],
                   zero_point=np.array([30.0, 31, 27, 28])[straight])
    for field in ("image", "inverse_variance", "flags", "band_present"):
        np.testing.assert_array_equal(getattr(scene, field), getattr(expected, field))
    np.testing.assert_allclose(scene.psf, expected.psf, rtol=1e-14)  # the mean of bands has another order
    missing = [b for b in range(4) if b not in index]
    assert not scene.band_present[missing].any()
    assert not scene.image[missing].any()
    assert ("BAND_MISSING" in names(scene)) == bool(missing)
    np.testing.assert_allclose(scene.psf.sum((1, 2)), 1)
    np.testing.assert_allclose(scene.psf[index], psf[index], rtol=1e-12)


def test_band_lists_as_text():
    image = noise(2, 9, 9)
    for bands in ("ri", "r,i", "r i", ["r", "i"], ("r", "i"), np.array(["r", "i"])):
        same(one(image, bands=bands), one(image, bands="ri"))
    wide = MODEL | {"bundle_bands": ("VIS", "Y")}
    (scene,) = make_scenes(image[:1], CENTER, variance=1.0, bands="VIS", **wide)
    assert scene.band_present.tolist() == [True, False]


def test_units():
    image, variance = noise(), np.random.default_rng(1).random(SHAPE) + 1
    plain = one(image, variance=variance)
    micro = one(image * 1e-3 * u.uJy, variance=variance * 1e-6 * u.uJy**2)
    np.testing.assert_allclose(micro.image, plain.image, rtol=1e-6)
    np.testing.assert_allclose(micro.inverse_variance, plain.inverse_variance, rtol=1e-6)
    # A list may mix units.
    mixed = one([plane * 1e-3 * u.uJy for plane in image[:2]] + [plane * u.nJy for plane in image[2:]],
                variance=variance * u.nJy**2, background=0 * u.uJy)
    np.testing.assert_allclose(mixed.image, plain.image, rtol=1e-6)
    np.testing.assert_allclose(mixed.inverse_variance, plain.inverse_variance, rtol=1e-6)


@pytest.mark.parametrize("unit", [1, u.adu, u.electron, u.dimensionless_unscaled])
def test_counts_with_a_zero_point(unit):
    image = noise()
    scene = one(image * unit, variance=2.0, zero_point=27.0, background=0.5)
    np.testing.assert_allclose(scene.image, (image - 0.5) * 57.543994, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scene.inverse_variance, 0.5 / 57.543994**2, rtol=1e-5)


def test_background():
    image, level = noise() + 1e6, np.array([1e6, 1e6 - 1, 1e6, 1e6])
    expected = (image - level[:, None, None]).astype(np.float32)  # subtracted in float64
    np.testing.assert_array_equal(one(image, background=level).image, expected)
    np.testing.assert_array_equal(one(image, background=np.broadcast_to(level[:, None, None], SHAPE)).image, expected)


def test_masked_arrays_are_masked_not_flagged():
    image = np.ma.masked_array(noise(), noise(seed=1) > 1.5)
    image.data[image.mask] = np.nan
    variance = np.ma.masked_array(np.ones(SHAPE), noise(seed=2) > 1.5)
    scene = one(image, variance=variance)
    np.testing.assert_array_equal(scene.inverse_variance == 0, image.mask | variance.mask)
    assert not names(scene)


def test_single_band_image_without_band_axis():
    image, mask = noise(20, 24), noise(20, 24) > 1
    psf = psf_images(1)
    flat = one(image, bands="r", mask=mask, variance=np.full((20, 24), 2.0), psf=psf[0], background=image * 0)
    same(flat, one(image[None], bands=["r"], mask=mask[None], variance=np.full((1, 20, 24), 2.0), psf=psf))


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 1, 9), (4, 0, 5)])
def test_tiny_images(shape):
    scene = one(np.ones(shape), [(0.0, 0.0)])
    assert scene.image.shape == shape
    assert names(scene) == ({"OFF_IMAGE"} if 0 in shape else {"EDGE"})


# ---- batches


def test_nesting():
    images = [noise(4, 9, 9), noise(4, 12, 7, seed=1)]
    centers = [[(1.0, 2.0), (5.0, 5.0)], []]
    psfs = [psf_images(seed=1), psf_images(seed=2)]
    masks = [images[0][0] > 1, None]
    scenes = make_scenes(images, centers, psf=psfs, mask=masks, variance=[2.0 * np.ones(4), images[1] ** 2], **MODEL)
    same(scenes[0], one(images[0], centers[0], psf=psfs[0], mask=masks[0], variance=2.0))
    same(scenes[1], one(images[1], np.zeros((0, 2)), psf=psfs[1], variance=images[1] ** 2))
    assert [scene.name for scene in scenes] == ["0", "1"]
    assert scenes[1].centers.shape == (0, 2)


def test_a_stack_and_a_sequence_are_the_same():
    images, centers = noise(3, *SHAPE), noise(3, 2, 2) + 5
    ragged = np.empty(3, dtype=object)
    ragged[:] = list(images)
    expected = [one(image, c) for image, c in zip(images, centers, strict=True)]
    for batch in (images, list(images), tuple(images), ragged):
        for got, scene in zip(make_scenes(batch, centers, variance=1.0, **MODEL), expected, strict=True):
            same(got, scene)


def test_shared_arguments():
    images, psf = noise(3, *SHAPE), psf_images()
    for variance in (2.0, [2.0] * 4, np.full(4, 2.0), np.full((3, *SHAPE), 2.0), [np.full(4, 2.0)] * 3):
        scenes = make_scenes(images, [CENTER] * 3, variance=variance, psf=psf, background=0.0, **MODEL)
        assert all((scene.inverse_variance == 0.5).all() for scene in scenes)
        assert scenes[0].psf is scenes[2].psf  # one array gives one folded basis


def test_single_band_cutouts_in_a_list():
    images, psf = noise(3, 20, 24), psf_images(3)
    options = {"bands": "r", "variance": 1.0} | MODEL
    scenes = make_scenes(list(images), [CENTER] * 3, psf=list(psf), **options)
    shared = make_scenes(list(images), [CENTER] * 3, psf=psf[0], **options)
    for i in range(3):
        same(scenes[i], one(images[i], bands="r", psf=psf[i]))
        same(shared[i], one(images[i], bands="r", psf=psf[0]))


@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 4, 9, 9))])
def test_empty_batch(empty):
    assert make_scenes(empty, [], **MODEL) == []
    assert make_scenes(empty, [], variance=[], mask=[], psf=[], background=1.0, **MODEL) == []


# ---- problems of the data: flags


def test_non_finite_pixels():
    image = noise()
    image[1, 8, 10], image[2, 0, 0], image[3, 5, 20] = np.nan, np.inf, 1e300  # 1e300 overflows float32
    scene = one(image, [(10, 8), (2, 2), (10, 15), (21, 5)])
    dropped = ~(np.abs(image) < 1e38)
    np.testing.assert_array_equal(scene.inverse_variance == 0, dropped)
    assert not scene.image[dropped].any()
    assert ["NON_FINITE" in names(scene, i) for i in range(4)] == [True, True, False, True]
    assert names(one(image, mask=dropped)) == set()  # the caller masked the pixel


def test_bad_variance():
    variance = np.ones(SHAPE)
    variance[:, 8, 10], variance[0, 7, 10] = [0.0, -1.0, np.nan, -np.inf], 1e-60
    variance[1, 15, 20] = np.inf
    scene = one(variance=variance, centers=[(10, 8), (20, 15)])
    assert (scene.inverse_variance == 0).sum() == 6
    assert "BAD_VARIANCE" in names(scene)
    assert "MASKED_CENTER" in names(scene)
    assert "BAD_VARIANCE" not in names(scene, 1)  # infinite variance means masked
    assert np.isfinite(scene.inverse_variance).all()
    assert {"BAD_VARIANCE", "NO_DATA"} <= names(one(variance=0.0))


def test_masks():
    mask = noise(20, 24) > 0
    scene = one(mask=mask)
    np.testing.assert_array_equal(scene.inverse_variance == 0, np.broadcast_to(mask, SHAPE))
    same(scene, one(mask=np.broadcast_to(mask, SHAPE)))
    same(scene, one(mask=mask.astype(">i4")))
    everything = one(mask=np.ones(SHAPE, bool))
    assert {"NO_DATA", "MASKED_CENTER", "BAND_MISSING"} == names(everything)
    center = np.zeros((20, 24), bool)
    center[8, 10] = True
    assert names(one(mask=center)) == {"MASKED_CENTER"}
    assert names(one(mask=np.stack([center] * 3 + [center * False]))) == set()  # one band has the pixel


def test_band_missing_in_a_window_only():
    mask = np.zeros(SHAPE, bool)
    mask[2, :, :15] = True
    scene = one(mask=mask, centers=[(10, 10), (11, 10)])
    assert names(scene, 0) == {"BAND_MISSING"}
    assert names(scene, 1) == set()
    assert scene.band_present.all()


def test_where_centers_lie():
    n_y, n_x = SHAPE[1:]
    centers = {(-0.5, 10): set(), (n_x - 0.5, n_y - 0.5): set(), (-0.51, 10): {"OFF_IMAGE"},
               (10, n_y - 0.49): {"OFF_IMAGE"}, (1e30, 3): {"OFF_IMAGE"}, (np.nan, 3): {"CENTER_NOT_FINITE"},
               (3, -np.inf): {"CENTER_NOT_FINITE"}}
    for center, expected in centers.items():
        scene = one(centers=[center])
        assert names(scene) - {"EDGE"} == expected, center
        assert (scene.anchors >= 0).all()
        assert (scene.anchors < [n_x, n_y]).all()
    np.testing.assert_array_equal(one(centers=[(3.4, 7.6)]).anchors, [[3, 8]])


def test_edge():
    inside, outside = [(4, 4), (19, 15)], [(3, 4), (4, 3), (20, 15), (19, 16)]
    scene = one(centers=inside + outside)
    assert ["EDGE" in names(scene, i) for i in range(6)] == [False] * 2 + [True] * 4


def test_too_close_ignores_sources_that_are_not_fitted():
    scene = one(centers=[(10, 10), (10.5, 10), (0, 0), (-0.7, 0), (15, 15), (16, 15), (np.nan, 1), (np.nan, 1)])
    assert ["TOO_CLOSE" in names(scene, i) for i in range(8)] == [True, True] + [False] * 6


@settings(deadline=None, max_examples=60)
@given(n=st.integers(0, 40), width=st.sampled_from([0.0, 3.0, 12.0]), height=st.sampled_from([0.0, 3.0, 12.0]),
       step=st.sampled_from([0.0, 0.25, 1.0]), seed=st.integers(0, 999))
def test_too_close_against_all_pairs(n, width, height, step, seed):
    points = np.random.default_rng(seed).uniform(size=(n, 2)) * [width, height]
    if step:
        points = np.round(points / step) * step  # duplicates, distances of exactly one
    distance2 = ((points[:, None] - points) ** 2).sum(-1) + 9 * np.eye(n)
    np.testing.assert_array_equal(too_close(points), (distance2 < 1).any(1))


@settings(deadline=None, max_examples=40)
@given(n_y=st.integers(1, 12), n_x=st.integers(1, 12), half=st.integers(0, 5), fill=st.sampled_from([0, 0.3, 0.9, 1]),
       seed=st.integers(0, 99))
def test_window_counts_against_slices(n_y, n_x, half, fill, seed):
    rng = np.random.default_rng(seed)
    mask, centers = rng.random((n_y, n_x)) < fill, rng.uniform(-0.5, 11.5, (5, 2))
    x, y = anchor_pixels(centers, (n_y, n_x)).T
    expected = [mask[max(j - half, 0) : j + half + 1, max(i - half, 0) : i + half + 1].sum()
                for i, j in zip(x, y, strict=True)]
    np.testing.assert_array_equal(Windows(centers, (n_y, n_x), half).counts(mask), expected)


# ---- variance from the image


def test_estimated_variance():
    image = noise(4, 100, 100) * np.array([1, 2, 3, 4])[:, None, None]
    y, x = np.mgrid[:100, :100]
    image += 500 * np.exp(-((x - 50) ** 2 + (y - 50) ** 2) / 2 / 3**2)  # a source must not change the estimate
    image[0, 3, 3] = np.nan
    scene = one(image, variance=None)
    sigma = scene.inverse_variance[:, 0, 0] ** -0.5
    np.testing.assert_allclose(sigma, [1, 2, 3, 4], rtol=0.08)  # 1% of noise, 5% of the source's 4% of the pixels
    assert names(scene) == {"VARIANCE_ESTIMATED"}


def test_estimate_does_without_what_it_must():
    assert np.isnan(estimate_variance(np.zeros((9, 9)), np.ones((9, 9), bool)))
    assert np.isnan(estimate_variance(noise(9, 9), np.zeros((9, 9), bool)))
    assert np.isnan(estimate_variance(np.zeros((0, 3)), np.ones((0, 3), bool)))
    # An image that is too small or too smooth gets the model's nominal noise.
    assert "NO_DATA" in names(one(np.ones((4, 1, 1)), [(0, 0)], variance=None))
    scene = one(np.ones((4, 1, 1)), [(0, 0)], variance=None, bundle_sky_sigma=[2.0, 2, 2, 2])
    np.testing.assert_array_equal(scene.inverse_variance, 0.25)
    big = noise(2000, 1500)
    assert estimate_variance(big, np.ones(big.shape, bool)) == pytest.approx(1, rel=0.01)


# ---- PSFs


def test_psf_sum():
    psf = psf_images()
    assert names(one(psf=psf)) == set()
    scene = one(psf=psf * np.array([1, 1, 2, 1])[:, None, None])
    assert names(scene) == {"PSF_NOT_NORMALIZED"}
    np.testing.assert_allclose(scene.psf, psf)


def test_psfs_of_different_sizes():
    psf = [psf_images(1, q, seed=q)[0] for q in (5, 9, 7, 9)]
    scene = one(psf=psf)
    assert scene.psf.shape == (4, 9, 9)
    np.testing.assert_allclose(scene.psf[0, 2:-2, 2:-2], psf[0])


def test_a_band_without_data_needs_no_psf():
    psf, mask = psf_images(), np.zeros(SHAPE, bool)
    psf[1], mask[1] = np.nan, True
    scene = one(psf=psf, mask=mask)
    np.testing.assert_allclose(scene.psf[1], psf[[0, 2, 3]].mean(0))
    assert one(psf=psf, mask=np.ones(SHAPE, bool)).psf is None
    with pytest.raises(ValueError, match="psf of band g: expected finite"):
        one(psf=psf)


# ---- mistakes of the caller: errors that say what, expected and got


@pytest.mark.parametrize(("options", "message"), [
    ({"image": np.zeros(5)}, r"cutouts: expected .* got shape \(5,\)"),
    ({"image": np.zeros((3, 9, 9))}, r"cutouts: expected shape \(4, n_y, n_x\) .* got \(3, 9, 9\)"),
    ({"image": np.zeros((9, 9))}, "name the image's bands with bands="),
    ({"image": "image.fits"}, "cutouts: expected .* got 'image.fits'"),
    ({"image": np.zeros(SHAPE, complex)}, "cutouts: expected real numbers"),
    ({"image": np.zeros(SHAPE, bool)}, "cutouts: expected real numbers"),
    ({"image": [np.zeros((9, 9)), np.zeros((9, 8)), np.zeros((9, 9)), np.zeros((9, 9))]}, "cutouts: .* one shape"),
    ({"image": noise() * u.adu}, "cutouts: expected a unit of flux density, or zero_point= .* adu"),
    ({"image": noise() * u.nJy, "zero_point": 27.0}, "zero_point: expected None"),
    ({"zero_point": [27.0, 27.0]}, "zero_point: expected a finite number or one for each of u, g, r, i"),
    ({"zero_point": np.nan}, "zero_point"),
    ({"centers": [(1, 2, 3)]}, r"centers: expected shape \(n_source, 2\).* got \(1, 3\)"),
    ({"centers": (1, 2)}, r"centers: expected shape .* got \(2,\)"),
    ({"centers": "here"}, "centers: expected numbers"),
    ({"centers": None}, "centers: expected positions"),
    ({"bands": "ugrx"}, "bands: expected distinct names among u, g, r, i, got 'ugrx'"),
    ({"bands": "uggr"}, "bands: expected distinct names"),
    ({"bands": []}, "bands: expected distinct names"),
    ({"variance": np.ones((20, 24))}, r"variance: expected a number, shape \(4,\) or the image's .* got \(20, 24\)"),
    ({"variance": np.ones(3)}, r"variance: .* got \(3,\)"),
    ({"variance": "poisson"}, "variance: expected real numbers"),
    ({"mask": np.zeros((24, 20), bool)}, r"mask: expected shape \(20, 24\) or \(4, 20, 24\), got \(24, 20\)"),
    ({"mask": np.full(SHAPE, 4)}, "mask: expected bool, True meaning bad, got int64; select bit planes"),
    ({"background": np.zeros(5)}, r"background: .* got \(5,\)"),
    ({"psf": np.ones((3, 5, 5))}, r"psf: expected images \(4, q, q\) for the bands u, g, r, i, .*shapes \[\(5, 5"),
    ({"psf": -3.0}, "psf: expected a FWHM in arcsec, .* got -3.0"),
    ({"psf": "nominall"}, "psf: expected images .*got 'nominall', which is no file"),
    ({"psf": -np.ones((4, 5, 5))}, "psf .*positive sum"),
    ({"pixel_scale": 0.263}, "pixel_scale: expected the model's 0.2 arcsec within 2%, got 0.263"),
    ({"pixel_scale": "small"}, "pixel_scale: expected arcsec"),
    ({"pixel_scale": np.nan}, "pixel_scale"),
])
def test_mistakes_raise(options, message):
    with pytest.raises(ValueError, match=message):
        one(**options)


@pytest.mark.parametrize("scale", [None, 0.2, 0.204, 0.196, 0.2 * u.arcsec, (0.2 / 60) * u.arcmin])
def test_pixel_scale_within_two_percent(scale):
    one(pixel_scale=scale)


@pytest.mark.parametrize(("options", "message"), [
    ({"centers": [CENTER]}, "centers: expected one entry for each of the 2 scenes, got a sequence of 1"),
    ({"mask": np.zeros((3, 20, 24), bool)}, "mask: expected one entry for each of the 2 scenes"),
    ({"psf": [psf_images()] * 3}, "psf: expected one entry"),
    ({"variance": [np.ones(SHAPE)]}, "variance: expected one entry"),
    ({"centers": [CENTER, [(1, 2, 3)]]}, r"centers\[1\]: expected shape"),
    ({"cutouts": [noise(), noise(3, 9, 9)]}, r"cutouts\[1\]: expected shape"),
    ({"mask": [None, np.zeros((2, 2), bool)]}, r"mask\[1\]: expected shape"),
])
def test_mistakes_in_a_batch_name_the_scene(options, message):
    arguments = {"cutouts": [noise(), noise()], "centers": [CENTER, CENTER], "variance": 1.0} | MODEL | options
    with pytest.raises(ValueError, match=message):
        make_scenes(**arguments)
