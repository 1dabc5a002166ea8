"""Files of results whose tables do not agree, or that lead to files of their author's choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, toy_deblender: Deblender) -> Path:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(3, 20, 22)) for _ in range(2)]
    result = toy_deblender.deblend_batch(images, [[(9, 9), (12, 10)], [(8, 8)]], n_iteration=1, psf="nominal")
    path = tmp_path_factory.mktemp("result") / "r.fits"
    result.write(path, images=True)
    return path


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Callable[[Callable[[fits.HDUList], Any]], Path]:
    def damage(edit: Callable[[fits.HDUList], Any]) -> Path:
        path = tmp_path / "r.fits"
        with fits.open(written) as hdus:
            for hdu in hdus:
                _ = hdu.data
            edit(hdus)
            hdus.writeto(path)
        return path
    return damage


def put(name: str, column: str, row: int, value: int) -> Callable[[fits.HDUList], None]:
    def edit(hdus: fits.HDUList) -> None:
        hdus[name].data[column][row] = value
    return edit


def replace(name: str, data: np.ndarray) -> Callable[[fits.HDUList], None]:
    def edit(hdus: fits.HDUList) -> None:
        hdus[name] = fits.ImageHDU(data, name=name)
    return edit


@pytest.mark.parametrize(("edit", "message"), [
    (put("SCENES", "n_source", 0, 2**40), "more sources"), (put("SCENES", "n_source", 0, -1), "more sources"),
    (put("SCENES", "n_source", 0, 1), "not as many"), (put("SCENES", "n_y", 0, 2**40), "pixels wide"),
    (put("SCENES", "n_x", 1, -3), "pixels wide"), (put("SCENES", "n_x", 1, 30), "do not fit SCENES"),
    (put("SCENES", "psf", 0, 7), "PSF that there is not"), (put("FIT", "psf", 0, -1), "PSF that there is not"),
    (put("BLENDS", "n_member", 0, 2**31), "more members"), (put("BLENDS", "n_member", 0, 0), "more members"),
    (put("BLENDS", "scene", 0, 5), "names a scene"), (put("CATALOG", "blend", 0, 99), "names a blend"),
    (replace("BLEND_ROW", np.array([0, 1])), "does not fit BLENDS"),
    (replace("BLEND_ROW", np.array([0, 1, 99])), "BLEND_ROW"),
    (replace("BLEND_FLUX_COV", np.zeros(5, np.float32)), "BLEND_FLUX_COV does not fit"),
    (replace("PSF", np.zeros((1, 3, 5))), "PSF has not the shape"),
    (replace("PSF", np.zeros((1, 3, 1, 4097))), "PSF has not the shape"),
    (replace("PSF_SIZE", np.array([-1])), "odd sizes"), (replace("PSF_SIZE", np.array([10**6 + 1])), "odd sizes"),
    (replace("IMAGE", np.zeros((2, 2), np.float32)), "do not fit SCENES"),
    (replace("CATALOG", np.zeros((2, 2), np.float32)), "is no table"),
    (lambda hdus: hdus["CATALOG"].header.remove("BANDS"), "BANDS"),
    (lambda hdus: hdus["FIT"].header.set("REVISION", "x" * 60), "layout xxxxxxxxxxxxxxxxxxxx,"),
    (lambda hdus: hdus.pop(hdus.index_of("PSF")), "PSF"),
])
def test_tables_that_do_not_agree(damaged: Any, toy_deblender: Deblender, edit: Any, message: str) -> None:
    path = damaged(edit)
    with pytest.raises((ValueError, OSError), match=message):
        DeblendResult.read(path, model=toy_deblender)


def test_the_file_is_read_when_undamaged(written: Path, toy_deblender: Deblender) -> None:
    assert DeblendResult.read(written, model=toy_deblender).n_scene == 2


@pytest.mark.parametrize("name", ["/tmp/evil", "../../evil", "evil", "."])
def test_a_file_leads_to_no_folder(damaged: Any, toy_deblender: Deblender, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    path = damaged(lambda hdus: hdus["CATALOG"].header.set("BUNDLE", name))
    with pytest.raises(ValueError, match=r"give that bundle's folder: (no bundle|.*is not a bundle)"):
        DeblendResult.read(path)
