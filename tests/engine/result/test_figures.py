"""Figures: what they show is where it should be, for every kind of scene, and their parts are testable numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_scenes import changed

from deblendrt.engine.result import colors, figures
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.scene.flags import Flag

Toy = Callable[..., DeblendResult]
PNG = b"\x89PNG\r\n\x1a\n"

pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra `figures`")


@pytest.mark.parametrize("bands", ["ugrizy", "gri", "gr", "i"])
def test_figures_of_any_bands(toy_result: Toy, bands: str, tmp_path: Path) -> None:
    result = toy_result(bands=bands)
    overview, sources = figures.plot_overview(result, title="toy"), figures.plot_sources(result, title="toy")
    assert [axis.get_title() for axis in overview.axes[1:4]] == [
        "model of 5 sources",
        "image - model",
        f"(image - model) / sigma in {'i' if 'i' in bands else 'r'}",
    ]
    assert len(sources.axes) == 4 * result.n_source
    for name, figure in (("overview", overview), ("sources", sources)):
        figures.save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overview.png", "sources.png"]


def test_no_source_and_one_source(toy_result: Toy) -> None:
    figures.plot_overview(toy_result(n_source=0))
    assert figures.plot_sources(toy_result(n_source=0)).axes == []
    assert len(figures.plot_sources(toy_result(n_source=1)).axes) == 4


def test_scene_without_data(toy_result: Toy) -> None:
    result = toy_result()
    result.scenes[0].inverse_variance[:] = 0
    result.scenes[0].image[:] = 0
    figures.plot_overview(result)
    figures.plot_sources(result)


def test_large_scene_is_binned(toy_result: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_DRAWN", 20)
    drawn = figures.plot_overview(toy_result()).axes[0].images[0]
    assert drawn.get_array().shape == (15, 17, 3)  # 60 x 70 pixels, four to one
    assert drawn.get_extent() == [-0.5, 67.5, -0.5, 59.5]  # the last two columns fill no bin


def test_palette(toy_result: Toy) -> None:
    result = toy_result()
    draw = colors.palette(result)
    assert draw.names == "irg"
    assert draw.channels == (3, 2, 1)
    image = draw(result.scenes[0].image)
    assert image.shape == (60, 70, 3)
    assert image.dtype == np.uint8
    brightest = np.unravel_index(result.model(0).sum(axis=0).argmax(), (60, 70))
    assert image[brightest].min() > 100
    assert image[:5, :5].max() < 40  # masked: black, no brighter than the sky


def test_palette_leaves_out_a_band_without_data(toy_result: Toy) -> None:
    result = toy_result()
    result.scenes[0].inverse_variance[3] = 0
    assert colors.palette(result).names == "zrg"
    assert colors.reference_band(result) == 2
    assert colors.palette(toy_result(bands="ABCD")).names == "DCA"


def test_panels_add_up(toy_result: Toy) -> None:
    """Image = other sources + (others removed), pixel for pixel, at the image's edge too."""
    result = toy_result(shape=(30, 30))
    for i in np.flatnonzero(result.fitted):
        stamp, corner = result.stamps(i)
        own = figures._placed(stamp, (-corner[0], -corner[1]), (30, 30))
        alone = DeblendResult(**{**vars(result), "flags": np.where(np.arange(6) == i, 0, Flag.NO_DATA)})
        np.testing.assert_allclose(own, alone.model(0), rtol=1e-6)


@pytest.mark.parametrize("start", [(-50, 0), (0, 50), (41, 41), (-3, 39), (5, -2)])
def test_placed(start: tuple[int, int]) -> None:
    stamp = np.random.default_rng(0).normal(size=(2, 41, 41))
    placed = figures._placed(stamp, start, (7, 9))
    padded = np.pad(stamp, ((0, 0), (60, 60), (60, 60)))
    x, y = start[0] + 60, start[1] + 60
    np.testing.assert_array_equal(placed, padded[:, y : y + 7, x : x + 9])


def test_brightest(toy_result: Toy) -> None:
    result = toy_result(n_source=12)
    chosen = figures.brightest_sources(result, limit=5)
    assert chosen.tolist() == sorted(chosen)
    assert set(chosen) == set(np.argsort(-np.nan_to_num(result.flux[:, 3]))[:5])
    assert 1 in figures.brightest_sources(result)  # not fitted: still a row of the figure


def test_titles(toy_result: Toy) -> None:
    result = toy_result()
    assert figures.source_title(result, 1) == "1   OFF_IMAGE"
    assert figures.source_title(result, 2).endswith("POOR_FIT, UNMODELLED_FLUX")
    assert " mag)" in figures.source_title(result, 0)
    result = changed(changed(result, "flux", 0, -5), "flags", 0, sum(list(Flag)[:5]))
    assert "flux < 0" in figures.source_title(result, 0)
    assert figures.source_title(result, 0).endswith(", +2")


def test_failed_write_leaves_no_file(toy_result: Toy, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        figures.save(figures.plot_sources(toy_result()), tmp_path / "absent" / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(toy_result: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "deblendrt\[plot\]"'):
        figures.plot_overview(toy_result())
