"""scarlet_lite reads our model files, in its own environment; `perf.embedding.rubin` runs it.

It is called with ``REQUEST.json ANSWER.json``. With a clone of meas_extensions_scarlet, the functions of that package
read the ``.scarlet`` file, too. Their imports from Rubin's compiled stack (afw, geom, butler) are replaced by mock
objects, which the functions called here do not use.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lsst.scarlet.lite as scl
import numpy as np

MOCKED = ("lsst.afw", "lsst.geom", "lsst.daf", "lsst.pipe", "lsst.utils", "lsst.resources", "lsst.pex", "lsst.cpputils")


class Mocks:
    """Finder and loader of mock modules for `MOCKED`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """A spec for a mocked module."""
        return ModuleSpec(name, self, is_package=True) if name.startswith(MOCKED) else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        """A mock that is also a package."""
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: Any) -> None:
        """Do nothing."""


def rubins_reader(clone: str) -> Any:
    """The io module of a clone of meas_extensions_scarlet."""
    sys.meta_path.insert(0, Mocks())  # type: ignore[arg-type]
    for name in ("lsst.meas", "lsst.meas.extensions", "lsst.meas.extensions.scarlet"):
        package = types.ModuleType(name)  # without its __init__, which imports the pipeline tasks
        package.__path__ = [str(Path(clone, "python", *name.split(".")))]
        sys.modules[name] = package
    if not hasattr(scl.component, "CubeComponent"):  # its name in scarlet_lite since 2026
        scl.component.CubeComponent = scl.io.ComponentCube
    return importlib.import_module("lsst.meas.extensions.scarlet.io.utils")


def drawn(observation: Any, source: Any) -> np.ndarray:
    """A source as scarlet_lite convolves it, on the whole image."""
    return observation.convolve(source.get_model().project(bbox=observation.bbox), mode="real").data


def compare(own: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, in units of the largest pixel."""
    return float(np.abs(own - theirs).max() / max(float(own.max()), 1e-9))


def read_json(path: str, images: Any, xy0: Sequence[int]) -> dict[str, Any]:
    """`ScarletModelData` of a JSON file, and of what scarlet_lite writes of it."""
    model = scl.io.ScarletModelData.parse_obj(json.loads(Path(path).read_text()))
    again = scl.io.ScarletModelData.parse_obj(json.loads(model.json()))
    differences, ids, total = [], [], np.zeros(images["model"].shape, np.float32)
    for key, data in again.blends.items():
        data.minimal_data_to_blend()  # its PSFs and bands suffice
        about = data.metadata
        box = scl.Box(total.shape[1:], origin=(xy0[1], xy0[0]))
        observation = scl.Observation.empty(bands=tuple(about["bands"]), psfs=about["psf"],
                                            model_psf=about["model_psf"], bbox=box, dtype=np.float32)
        blend = data.to_blend(observation)
        assert len(blend.sources) == len(model.blends[key].sources)
        for source in blend.sources:
            image = drawn(observation, source)
            total += image
            ids.append(source.metadata["id"])
            differences.append(compare(images[f"source_{source.metadata['id']}"], image))
    return {"ids": ids, "worst_source": max(differences), "median_source": float(np.median(differences)),
            "whole_image": compare(images["model"], total),
            "flux_ratio": (total.sum((1, 2), dtype=float) / images["model"].sum((1, 2), dtype=float)).tolist()}


def read_zip(clone: str, path: str, images: Any) -> dict[str, Any]:
    """`LsstScarletModelData` of a ``.scarlet`` file: read, one band at a time, flux shared as for heavy footprints."""
    utils = rubins_reader(clone)
    model = utils.read_scarlet_model(path)
    bands = list(model.metadata["bands"])
    index, ids, differences, empty = bands.index("i"), [], [], 0
    for data in model.blends.values():
        spans, origin = data.metadata["spans"], tuple(data.metadata["origin"])
        observation = scl.Observation.empty(bands=("dummy",), psfs=model.metadata["psf"][index][None],
                                            model_psf=model.metadata["model_psf"][None],
                                            bbox=scl.Box(spans.shape, origin=origin), dtype=np.float32)
        sources = [source for child in data.children.values()
                   for source in utils.monochromaticDataToScarlet(child, index, observation).sources]
        blend = scl.Blend(sources, observation)
        blend.conserve_flux()  # the image is empty here: that it runs is what is asked
        x0, y0 = origin[1] - int(images["x0"]), origin[0] - int(images["y0"])
        for source in blend.sources:
            image = drawn(observation, source)
            own = images[f"source_{source.metadata['id']}"][[index], y0:y0 + spans.shape[0], x0:x0 + spans.shape[1]]
            ids.append(source.metadata["id"])
            empty += not image.any()
            differences.append(compare(own, image) if own.any() else float(np.abs(image).max()))
    return {"ids": ids, "worst_source": max(differences), "without_light": empty}


def main(asked: str, answered: str) -> None:
    """Answer a request."""
    request = json.loads(Path(asked).read_text())
    with np.load(request["images"], allow_pickle=False) as images:
        answer = {"version": version("lsst-scarlet-lite"), "json": read_json(request["json"], images, request["xy0"])}
        if request["meas_extensions_scarlet"]:
            answer["zip"] = read_zip(request["meas_extensions_scarlet"], request["zip"], images)
    Path(answered).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
