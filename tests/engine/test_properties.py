"""Properties of results for any input: one row per source, NaN where nothing was fitted and nowhere else, flags that
follow from the input, the same bits in any batch and for any form of the images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from toy_model import BANDS, N_BAND, SKY_SIGMA, ToyModel
from toy_scenes import CONVERGED, VARIANCE, assert_close, make_scene

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import NOT_FITTED, Flag
from deblendrt.engine.scene.windows import CLOSE_PAIR_SEPARATION

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# derandomize: the same examples on every machine; raise max_examples to hunt
PROFILE: dict[str, Any] = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
FROM_INPUT = (Flag.NON_FINITE | Flag.NO_DATA | Flag.OFF_IMAGE | Flag.EDGE | Flag.TOO_CLOSE | Flag.MASKED_CENTER
              | Flag.VARIANCE_ESTIMATED | Flag.BAND_MISSING | Flag.CENTER_NOT_FINITE | Flag.BAD_VARIANCE)
ALWAYS = ("position", "latent", "position_err", "map_flux", "chi2", "log_prior", "enclosed")
"""Columns that are finite for every fitted source."""
BY_BAND = ("flux", "flux_err", "redistributed_flux", "redistributed_flux_err", "aperture_flux", "aperture_flux_err")
"""Columns that are finite in a fitted source's measured bands and nowhere else."""
FITTED_ONLY = (*ALWAYS, *BY_BAND, "flux_cov", "moments", "ellipticity", "ellipticity_err", "blendedness",
               "flux_overlap", "max_overlap")
SCENE_OF_ROWS = {"source_id", "scene_index", "blend"}  # numbers that count over the batch


@dataclasses.dataclass
class Case:
    """A scene as a caller gives it."""

    image: np.ndarray
    centers: np.ndarray
    bands: tuple[str, ...]
    mask: np.ndarray | None
    variance: Any

    @property
    def options(self) -> dict[str, Any]:
        return {"bands": self.bands, "mask": self.mask, "variance": self.variance, "psf": "nominal"}

    def __repr__(self) -> str:  # for hypothesis' reports
        mask = None if self.mask is None else f"{self.mask.shape}, {self.mask.mean():.0%} bad"
        return (f"Case(image {self.image.shape} {self.image.dtype}, bands {self.bands}, centers "
                f"{self.centers.tolist()}, mask {mask}, variance {np.shape(self.variance) or self.variance})")


def draw_center(kind: str, before: list[tuple[float, float]], size: np.ndarray,
                rng: np.random.Generator) -> tuple[float, float]:
    """Draw a centre (x, y) on an image of a size (n_x, n_y)."""
    x, y = rng.uniform(0, size - 1)
    if kind == "duplicate" and before:
        return before[rng.integers(len(before))]
    if kind == "near" and before:
        x, y = before[rng.integers(len(before))] + rng.uniform(-2, 2, 2)
    elif kind == "whole":
        x, y = np.rint([x, y])
    elif kind == "border":
        x, y = rng.choice([-0.5, -0.51, 0.0, size[0] - 0.5, size[0] - 0.49]), rng.choice([-0.5, y, size[1] - 0.5])
    elif kind == "off":
        x, y = rng.choice([-1e9, -3.0, 2.0 * size[0] + 1]), y
    elif kind == "not finite":
        x, y = rng.permutation([rng.choice([np.nan, np.inf, -np.inf]), y])
    return float(x), float(y)


KINDS = ("inside", "inside", "inside", "near", "whole", "duplicate", "border", "off", "not finite")
MASKS = ("none", "none", "none", "pixels", "pixels of bands", "a band", "a side", "all but one", "everything")
VARIANCES = ("estimated", "number", "bands", "map", "bad map")


@st.composite
def cases(draw: st.DrawFn, bands: tuple[str, ...] | None = None) -> Case:
    """Draw layout and faults of a scene one by one, so that a failing example shrinks; a seed makes the pixels."""
    n_y, n_x = draw(st.integers(1, 44)), draw(st.integers(1, 44))
    kinds = [draw(st.sampled_from(KINDS)) for _ in range(draw(st.sampled_from((3, 1, 2, 4, 5, 6, 0))))]
    chosen = bands or tuple(draw(st.permutations(BANDS)))[: draw(st.integers(1, N_BAND))]
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    centers: list[tuple[float, float]] = []
    for kind in kinds:
        centers.append(draw_center(kind, centers, np.array([n_x, n_y]), rng))
    sigma = np.array([SKY_SIGMA[BANDS.index(b)] for b in chosen])[:, None, None]
    image = rng.normal(0, sigma, (len(chosen), n_y, n_x))
    y, x = np.mgrid[:n_y, :n_x]
    brightest = draw(st.sampled_from([1.0, 2.0, 4.0, 8.0]))
    for cx, cy in centers:
        if np.isfinite([cx, cy]).all():
            width, peak = rng.uniform(1.8, 3), 10 ** rng.uniform(-1, brightest)
            image += peak * np.exp(-0.5 * (((x - cx) ** 2 + (y - cy) ** 2) / width**2))
    mask = {
        "none": None, "pixels": rng.random((n_y, n_x)) < 0.3, "pixels of bands": rng.random(image.shape) < 0.3,
        "a band": np.broadcast_to(np.arange(len(chosen))[:, None, None] == 0, image.shape),
        "a side": x < rng.integers(0, n_x + 1), "all but one": (x != n_x // 2) | (y != n_y // 2),
        "everything": np.ones((n_y, n_x), bool),
    }[draw(st.sampled_from(MASKS))]
    bad = rng.random(image.shape) < 0.05
    if draw(st.integers(0, 3)) == 0:
        image[bad] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    known = np.broadcast_to(sigma**2, image.shape)
    variance: Any = {"estimated": None, "number": 2.0, "bands": sigma[:, 0, 0] ** 2, "map": known,
                     "bad map": np.where(bad, draw(st.sampled_from([0.0, -1.0, np.nan, np.inf])), known),
                     }[draw(st.sampled_from(VARIANCES))]
    return Case(image, np.array(centers, np.float64).reshape(-1, 2), chosen, mask, variance)


def expected_flags(case: Case, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the flags `FROM_INPUT` pixel by pixel, and whether each source has data in each band of the model."""
    n_y, n_x = case.image.shape[1:]
    masked = np.zeros(case.image.shape, bool) if case.mask is None else np.broadcast_to(case.mask, case.image.shape)
    variance = np.ones(case.image.shape)
    if case.variance is not None:
        given = np.asarray(case.variance, np.float64)
        variance = np.broadcast_to(given[:, None, None] if given.ndim == 1 else given, case.image.shape)
    finite, known = np.isfinite(case.image), (variance > 0) & ~np.isnan(variance)
    usable = ~masked & finite & known & np.isfinite(variance)
    flags, measured = np.zeros(len(case.centers), np.int64), np.zeros((len(case.centers), N_BAND), bool)
    on_image = [bool(np.isfinite([x, y]).all() and -0.5 <= x <= n_x - 0.5 and -0.5 <= y <= n_y - 0.5)
                for x, y in case.centers]
    for i, (x, y) in enumerate(case.centers):
        if not np.isfinite([x, y]).all():
            flags[i] = Flag.CENTER_NOT_FINITE
            continue
        if not on_image[i]:
            flags[i] = Flag.OFF_IMAGE
            continue
        ax, ay = min(max(round(x), 0), n_x - 1), min(max(round(y), 0), n_y - 1)
        area = (slice(None), slice(max(ay - half, 0), ay + half + 1), slice(max(ax - half, 0), ax + half + 1))
        for b, name in enumerate(case.bands):
            measured[i, BANDS.index(name)] = usable[area][b].any()
        distances = [np.hypot(*(case.centers[j] - [x, y])) for j in range(len(on_image)) if j != i and on_image[j]]
        flags[i] = sum(flag for flag, raised in {
            Flag.BAND_MISSING: not measured[i].all(),
            Flag.NO_DATA: not measured[i].any(),
            Flag.EDGE: ax < half or ay < half or ax + half >= n_x or ay + half >= n_y,
            Flag.MASKED_CENTER: not usable[:, ay, ax].any(),
            Flag.NON_FINITE: (~masked & ~finite)[area].any(),
            Flag.BAD_VARIANCE: (~masked & ~known)[area].any(),
            Flag.VARIANCE_ESTIMATED: case.variance is None,
            Flag.TOO_CLOSE: min(distances, default=np.inf) < CLOSE_PAIR_SEPARATION,
        }.items() if raised)
    return flags, measured


def row_columns(result: DeblendResult) -> dict[str, np.ndarray]:
    other = {"source_start", "scene_chi2", "scene_n_pixel", "objective", "sky", "sky_err", "folded_index"}
    found = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in other}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def bits(result: DeblendResult, i_scene: int) -> dict[str, bytes]:
    """Bytes of every column of a scene's rows, of the scene's own numbers and of its model image."""
    rows = result.sources(i_scene)
    found = {name: value[rows].tobytes() for name, value in row_columns(result).items() if name not in SCENE_OF_ROWS}
    for name in ("scene_chi2", "scene_n_pixel", "objective", "sky", "sky_err"):
        found[name] = getattr(result, name)[i_scene].tobytes()
    blends = np.unique(result.blend[rows])
    found["blend_flux_cov"] = b"".join(result.blend_flux_cov[b].tobytes() for b in blends[blends >= 0])
    found["model"] = result.model(i_scene).tobytes()
    return found


@pytest.fixture(scope="module", params=["toy_deblender", "wide_toy_deblender"])
def deblender(request: pytest.FixtureRequest) -> Deblender:
    """Deblenders without and with outskirts."""
    found: Deblender = request.getfixturevalue(request.param)
    return found


# --- any input


@given(case=cases(), solver=st.sampled_from(["gauss_newton", "gauss_newton", "adam"]), robust=st.booleans(),
       n_iteration=st.integers(0, 3), start=st.sampled_from(["encoder", "linear"]))
@settings(max_examples=150, **PROFILE)
def test_any_scene_gives_one_row_per_source(deblender: Deblender, case: Case, solver: str, robust: bool,
                                            n_iteration: int, start: str) -> None:
    before = [None if a is None else np.array(a, copy=True) for a in (case.image, case.centers, case.mask,
                                                                      case.variance)]
    result = deblender.deblend_batch(case.image, case.centers, solver=solver, robust=robust, start=start,
                                         n_iteration=n_iteration, **case.options)
    for given_, kept in zip((case.image, case.centers, case.mask, case.variance), before, strict=True):
        np.testing.assert_array_equal(given_, kept)  # arguments are never modified
    n = len(case.centers)
    assert (result.n_source, result.n_scene, result.bands) == (n, 1, BANDS)
    np.testing.assert_array_equal(result.center, case.centers)
    for name, value in row_columns(result).items():
        assert len(value) == n, name

    flags, measured = expected_flags(case, deblender.window // 2)
    np.testing.assert_array_equal(result.flags & FROM_INPUT, flags)
    fitted = (flags & NOT_FITTED) == 0
    np.testing.assert_array_equal(result.fitted, fitted)
    for name in FITTED_ONLY:
        value = getattr(result, name)
        assert np.isnan(value[~fitted]).all(), name
    for name in ALWAYS:
        assert np.isfinite(getattr(result, name)[fitted]).all(), name
    for name in BY_BAND:
        np.testing.assert_array_equal(np.isfinite(getattr(result, name)), measured & fitted[:, None], name)
    assert (result.flux_err[measured & fitted[:, None]] > 0).all()
    np.testing.assert_array_equal(result.blend >= 0, fitted)
    for i in np.flatnonzero(~fitted):
        assert not result.stamps(int(i))[0].any()
    assert np.isfinite(result.model(0)).all()
    assert np.isfinite(result.residual(0)).all()
    assert len(result.to_table()) == n


# --- the batch


@given(scenes=st.lists(cases(BANDS), min_size=2, max_size=4), n_threads=st.sampled_from([1, 2]), data=st.data())
@settings(max_examples=25, **PROFILE)
def test_a_scene_has_the_same_bits_in_any_batch(deblender: Deblender, scenes: list[Case], n_threads: int,
                                                data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(scenes))))
    shared = VARIANCE if data.draw(st.booleans()) else None

    def mask(case: Case) -> np.ndarray:
        return np.zeros(case.image.shape, bool) if case.mask is None else np.broadcast_to(case.mask, case.image.shape)

    together = deblender.deblend_batch([scenes[k].image for k in order], [scenes[k].centers for k in order],
                                           mask=[mask(scenes[k]) for k in order], variance=shared, n_iteration=3,
                                           n_threads=n_threads, psf="nominal")
    for place, k in enumerate(order):
        alone = deblender.deblend_batch(scenes[k].image, scenes[k].centers, mask=mask(scenes[k]), variance=shared,
                                            n_iteration=3, psf="nominal")
        mixed, own = bits(together, place), bits(alone, 0)
        assert [name for name in own if mixed[name] != own[name]] == []


def test_bits_see_the_smallest_change(toy_deblender: Deblender, toy_model: ToyModel) -> None:
    image, centers, _ = make_scene(toy_deblender, toy_model, [(12, 12), (18, 15)])
    plain, again = (toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=2,
                                                psf="nominal") for _ in range(2))
    assert bits(plain, 0) == bits(again, 0)
    for name, value in row_columns(again).items():
        if name not in {*SCENE_OF_ROWS, "extent"}:  # without outskirts nothing can be drawn as extended
            other = value.copy()
            other.reshape(-1).view(np.uint8)[0] ^= 1
            assert bits(dataclasses.replace(again, **{name: other}), 0)[name] != bits(plain, 0)[name]


@pytest.mark.parametrize("value", [1e25, 3e38])
def test_a_fill_value_spoils_its_own_scene_only(toy_deblender: Deblender, toy_model: ToyModel, value: float) -> None:
    """Unmasked pixels have the largest float32: some programs mark missing data so."""
    image, centers, _ = make_scene(toy_deblender, toy_model, [(12, 12), (18, 15)])
    filled = image.astype(np.float64)
    filled[:, 12, 12] = value
    together = toy_deblender.deblend_batch([image, filled], [centers, centers], variance=VARIANCE, psf="nominal")
    assert bits(together, 0) == bits(toy_deblender.deblend_batch(image, centers, variance=VARIANCE, psf="nominal"), 0)
    assert (together.flags[2:] != together.flags[:2]).all()


# --- the form of the input


@given(case=cases(), data=st.data())
@settings(max_examples=50, **PROFILE)
def test_the_order_of_the_bands_changes_nothing(toy_deblender: Deblender, case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.bands))))

    def turned(value: Any) -> Any:
        return value[list(order)] if np.ndim(value) in (1, 3) else value

    plain = toy_deblender.deblend_batch(case.image, case.centers, n_iteration=2, **case.options)
    permuted = toy_deblender.deblend_batch(turned(case.image), case.centers, bands=[case.bands[b] for b in order],
                                           mask=turned(case.mask), variance=turned(case.variance), n_iteration=2,
                                           psf="nominal")
    assert bits(plain, 0) == bits(permuted, 0)


@given(case=cases())
@settings(max_examples=30, **PROFILE)
def test_a_band_that_is_masked_throughout_is_a_band_that_was_not_given(toy_deblender: Deblender, case: Case) -> None:
    full = np.full((N_BAND, *case.image.shape[1:]), 7.0)
    hidden = np.ones(full.shape, bool)
    variance = None if case.variance is None else np.ones(full.shape)
    index = [BANDS.index(b) for b in case.bands]
    full[index] = case.image
    hidden[index] = False if case.mask is None else case.mask
    if variance is not None:
        variance[index] = case.variance[:, None, None] if np.ndim(case.variance) == 1 else case.variance
    plain = toy_deblender.deblend_batch(case.image, case.centers, n_iteration=2, **case.options)
    padded = toy_deblender.deblend_batch(full, case.centers, mask=hidden, variance=variance, n_iteration=2,
                                         psf="nominal")
    assert bits(plain, 0) == bits(padded, 0)


@given(case=cases(BANDS), dtype=st.sampled_from(["<f4", ">f4", ">f8", "<i2", ">i4", "<u2", "<f2"]),
       layout=st.sampled_from(["C", "F", "strided", "read-only"]))
@settings(max_examples=50, **PROFILE)
def test_types_and_layouts_change_nothing(toy_deblender: Deblender, case: Case, dtype: str, layout: str) -> None:
    values = np.clip(np.rint(np.nan_to_num(case.image, posinf=9, neginf=-9)), 0 if dtype == "<u2" else -2000, 2000)
    typed = np.asarray(values, dtype)
    if layout == "strided":
        wide = np.zeros((N_BAND, values.shape[1], 2 * values.shape[2]), dtype)
        wide[:, :, ::2] = values
        typed = wide[:, :, ::2]
    elif layout == "F":
        typed = np.asfortranarray(typed)
    elif layout == "read-only":
        typed.flags.writeable = False
    options = {"mask": case.mask, "variance": VARIANCE, "psf": "nominal", "n_iteration": 2}
    expected = toy_deblender.deblend_batch(np.ascontiguousarray(typed, np.float64), case.centers, **options)
    assert bits(toy_deblender.deblend_batch(typed, case.centers, **options), 0) == bits(expected, 0)


@given(case=cases(BANDS), unit=st.sampled_from(["nJy", "uJy", "Jy", "zero point 31.4", "zero point 27"]))
@settings(max_examples=50, **PROFILE)
def test_units_change_nothing(toy_deblender: Deblender, case: Case, unit: str) -> None:
    """Results in other units agree to the rounding of a factor; a zero point of 31.4 gives the same bits as nJy."""
    from astropy import units as u

    options: dict[str, Any] = {"mask": case.mask, "psf": "nominal", "n_iteration": 0, "start": "linear"}
    plain = toy_deblender.deblend_batch(case.image, case.centers, variance=VARIANCE, **options)
    if unit.startswith("zero"):
        zero_point = float(unit.split()[-1])
        factor = 10 ** (0.4 * (31.4 - zero_point))
        other = toy_deblender.deblend_batch(case.image / factor, case.centers, variance=VARIANCE / factor**2,
                                            zero_point=zero_point, **options)
    else:
        other = toy_deblender.deblend_batch((case.image * u.nJy).to(unit), case.centers,
                                            variance=(VARIANCE * u.nJy**2).to(u.Unit(unit) ** 2), **options)
    if unit in ("nJy", "zero point 31.4"):
        assert bits(plain, 0) == bits(other, 0)
    np.testing.assert_array_equal(plain.flags & FROM_INPUT, other.flags & FROM_INPUT)
    scene, same = plain.scenes[0], other.scenes[0]
    np.testing.assert_allclose(scene.image, same.image, rtol=1e-6)
    np.testing.assert_allclose(scene.inverse_variance, same.inverse_variance, rtol=1e-6)


# --- the order of the sources


@given(seed=st.integers(0, 99), data=st.data())
@settings(max_examples=12, **PROFILE)
def test_the_order_of_the_sources_moves_rows_only(toy_deblender: Deblender, toy_model: ToyModel, seed: int,
                                                  data: st.DataObject) -> None:
    """The order changes little, for scenes that a descent can finish: galaxies of the model, apart from each other."""
    spots = [(12, 12), (18, 15), (31, 10), (36, 35), (14, 33), (20, 36)]
    anchor = data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=6, unique=True))
    order = np.array(data.draw(st.permutations(range(len(anchor)))))
    image, centers, _ = make_scene(toy_deblender, toy_model, anchor, (46, 48), seed=seed)
    plain = toy_deblender.deblend_batch(image, centers, variance=VARIANCE, n_iteration=CONVERGED, psf="nominal")
    permuted = toy_deblender.deblend_batch(image, centers[order], variance=VARIANCE, n_iteration=CONVERGED,
                                           psf="nominal")
    np.testing.assert_array_equal(permuted.center, plain.center[order])
    same_blend = plain.blend[order][:, None] == plain.blend[order]
    np.testing.assert_array_equal(permuted.blend[:, None] == permuted.blend, same_blend)
    assert_close(plain, permuted, order)
