"""Solutions of all scenes of the study by the engine or by a peer, kept in files, so that a page can be made again.

A peer gets the image with pixels of weight 0 filled from their neighbours, and infinite variance there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.flags import Flag
from perf.peers.exchange import GivenScene
from perf.peers.peer import Own, Peer
from perf.studies.sky import blends, hidden, injection
from perf.studies.sky.blends import BANDS, Blend
from perf.studies.sky.injection import Injected

FILL = 2.0  # pixel: sigma of the Gaussian that fills pixels without data, for peers


@dataclass(frozen=True)
class Solution:
    """A deblender's solution of the scenes of the study.

    Attributes
    ----------
    models : dict of int to list of float32 (n_band, n_y, n_x) [nJy]
        Model of each blend, by the side of its hidden blocks.
    injected : dict of str to array (n_scene, ...)
        `injection.injected_rows`; a peer has ``flux`` only.
    flags, scene : int64 (n_source,)
        Flags of the listed sources of the blends with hidden blocks of 4x4, and their blend's place in the list; empty
        for a peer.
    ms_per_source : float
    """

    models: dict[int, list[NDArray[np.float32]]]
    injected: dict[str, NDArray[Any]]
    flags: NDArray[np.int64]
    scene: NDArray[np.int64]
    ms_per_source: float

    def figures(self, all_blends: Sequence[Blend], scenes: Sequence[Injected], chosen: set[int]) -> dict[str, Any]:
        """Scores on the blends with these numbers."""
        places = [k for k, blend in enumerate(all_blends) if blend.number in chosen]
        part = [all_blends[k] for k in places]
        found: dict[str, Any] = {f"hidden_{size}": hidden.score(part, size, [models[k] for k in places])
                                 for size, models in self.models.items()}
        rows = [k for k, scene in enumerate(scenes) if scene.blend.number in chosen]
        columns = {name: values[rows] for name, values in self.injected.items()}
        given = [scenes[k] for k in rows]
        found["injected"] = injection.flux_score(given, columns["flux"])
        if len(self.flags):
            found["injected"] |= injection.error_score(given, columns)
            found["flags"] = hidden.flag_score(self.flags[np.isin(self.scene, places)])
        return found | {"ms_per_source": self.ms_per_source, "n_blend": len(part)}

    def write(self, path: Path) -> None:
        """Write the solution into an ``.npz`` file."""
        models = {f"model_{size}_{k}": model for size, every in self.models.items() for k, model in enumerate(every)}
        columns = {f"injected_{name}": values for name, values in self.injected.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, flags=self.flags, scene=self.scene, ms_per_source=np.array(self.ms_per_source),
                            **models, **columns)  # type: ignore[arg-type]

    @staticmethod
    def read(path: Path) -> Solution:
        """The solution of a file of `write`."""
        with np.load(path, allow_pickle=False) as file:
            n_blend = sum(name.startswith(f"model_{hidden.SIZES[0]}_") for name in file)
            models = {size: [file[f"model_{size}_{k}"] for k in range(n_blend)] for size in hidden.SIZES}
            injected = {name.removeprefix("injected_"): file[name] for name in file if name.startswith("injected_")}
            return Solution(models, injected, file["flags"], file["scene"], float(file["ms_per_source"]))


def solve(deblender: Deblender, all_blends: Sequence[Blend], scenes: Sequence[Injected],
          options: Mapping[str, Any]) -> Solution:
    """The engine's solution."""
    models, times = {}, []
    for size in hidden.SIZES:  # the last one's flags are kept
        figures, result = hidden.measure(deblender, all_blends, size, options)
        models[size] = [result.model(k) for k in range(len(all_blends))]
        times.append(figures["ms_per_source"])
    listed = (result.flags & Flag.FOUND) == 0
    _, with_more = injection.measure(deblender, scenes, options)
    return Solution(models, injection.injected_rows(scenes, with_more), result.flags[listed],
                    result.scene_index[listed], float(np.mean(times)))


def filled(image: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """An image whose pixels of weight 0 have the Gaussian mean of their neighbours, or 0 far from all data."""
    data = (weight > 0).astype(float)
    near = blends.smoothed(data, FILL)
    mean = blends.smoothed(image * data, FILL) / np.where(near > 0.01, near, np.inf)
    return np.where(weight > 0, image, mean)


def _given(image: NDArray[np.float64], weight: NDArray[np.float64], centers: NDArray[np.float64],
           psf: NDArray[np.float64]) -> GivenScene:
    variance = np.where(weight > 0, 1 / np.where(weight > 0, weight, 1.0), np.inf)
    return GivenScene(BANDS, psf, filled(image, weight).astype(np.float32), variance.astype(np.float32), centers)


def solve_with(peer: Peer | Own, all_blends: Sequence[Blend], scenes: Sequence[Injected],
               settings: Mapping[str, Any]) -> Solution:
    """A peer's solution."""
    models, seconds, n_source = {}, 0.0, 0
    for size in hidden.SIZES:
        done = peer.deblend([_given(b.image, hidden.given_weights(b, size), b.peaks, b.psf) for b in all_blends],
                            **settings)
        models[size] = [model.image.sum(0) for model in done]
        seconds += sum(model.seconds[0] for model in done)
        n_source += sum(len(model.flux) for model in done)
    done = peer.deblend([_given(s.image, s.blend.weight, s.centers, s.blend.psf) for s in scenes], **settings)
    none = np.zeros(0, np.int64)
    return Solution(models, {"flux": np.stack([model.flux[-1] for model in done])}, none, none,
                    1e3 * seconds / n_source)
