"""Run deblenders on the same scenes in turn, and compare times and accuracy. `run_peers` serves several pages."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.training.simulation import blend_scenes
from perf import report, scenes
from perf.peers import environments, exchange
from perf.peers.peer import PEERS, Missing, Own, Peer
from perf.studies.accuracy import measures

FloatArray = NDArray[np.float64]
OWN = "deblendrt"
SCENES_AT_ONCE = 10


@dataclasses.dataclass(frozen=True)
class DeblenderRun:
    """A deblender with its settings and its number of scenes; slow deblenders get fewer."""

    name: str
    deblender: str
    settings: dict[str, float]
    n_scene: int = scenes.N_SCENE


ENTRIES = (
    DeblenderRun("deblendrt", OWN, {"center_sigma": 0.2}),
    DeblenderRun("deblendrt, centres known", OWN, {"center_sigma": 0.03}),
    DeblenderRun("sep", "sep", {}),
    DeblenderRun("scarlet_lite", "scarlet_lite", {"max_iter": 200, "e_rel": 1e-4}),
    DeblenderRun("scarlet_lite, run long", "scarlet_lite", {"max_iter": 1000, "e_rel": 1e-6}, 50),
    DeblenderRun("scarlet2", "scarlet2", {"max_iter": 1000, "e_rel": 1e-4}, 50),
    DeblenderRun("madness", "madness", {"n_iteration": 200}, 10),
)


@dataclasses.dataclass(frozen=True)
class SceneChunk:
    """Some test scenes, in the form that `measures.image_columns` reads."""

    bands: tuple[str, ...]
    scenes: list[blend_scenes.SimulatedScene]

    def __iter__(self) -> Iterator[blend_scenes.SimulatedScene]:
        return iter(self.scenes)


class Stamps:
    """Models of whole scenes, in the form that `measures.image_columns` reads."""

    def __init__(self, models: list[exchange.Model]) -> None:
        self._images = [image for model in models for image in model.image]

    def stamps(self, i: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """The model image of source i, and its corner."""
        return self._images[i], (0, 0)


def source_columns(models: list[exchange.Model], chunk: SceneChunk) -> dict[str, FloatArray]:
    """Every metric of every source; NaN if the deblender failed."""
    flux, true = np.concatenate([m.flux for m in models]), np.concatenate([s.flux for s in chunk.scenes])
    columns = measures.flux_columns(flux, true, chunk.bands) | measures.image_columns(Stamps(models), chunk)
    failed = ~np.isfinite(flux).all(1)
    columns = {name: np.where(failed, np.nan, values) for name, values in columns.items()}
    for band in report.FLUX_BANDS:
        b = chunk.bands.index(band)
        columns[f"bias_{band}"] = flux[:, b] / true[:, b] - 1
    return columns


def _cost(entry: DeblenderRun, n_scene: int, models: list[exchange.Model]) -> dict[str, Any]:
    """Times, iterations and failures of an entry."""
    n_source = sum(len(m.flux) for m in models)
    compiling = sum((m.compile_seconds for m in models), exchange.NO_TIME)
    processor, wall = 1e3 * (sum((m.seconds for m in models), exchange.NO_TIME) - compiling) / n_source
    return {"deblender": entry.deblender, "settings": entry.settings, "n_scene": n_scene, "n_source": n_source,
            "ms_per_source": {"processor": float(processor), "wall": float(wall),
                              "processor_compiling": 1e3 * float(compiling[0]) / n_source,
                              "wall_compiling": 1e3 * float(compiling[1]) / n_source},
            "iterations": [m.iterations for m in models if m.iterations >= 0],
            "errors": [f"scene {k}: {m.error}" for k, m in enumerate(models) if m.error],
            "n_missed": sum(m.n_missed for m in models)}


def run(entries: Sequence[DeblenderRun], deblenders: dict[str, Own | Peer], tests: scenes.SceneSet,
        chunk: int) -> tuple[dict[str, dict[str, FloatArray]], dict[str, Any], dict[str, str]]:
    """Run all entries in turn on `chunk` scenes at a time.

    Returns
    -------
    found : dict
        Columns per source of every entry that may be judged.
    costs : dict
        `_cost` of every entry.
    ended : dict
        The reason if a deblender ended early; `found` and `costs` lack its entries.
    """
    parts: dict[str, list[dict[str, FloatArray]]] = {entry.name: [] for entry in entries}
    done: dict[str, list[exchange.Model]] = {entry.name: [] for entry in entries}
    ended: dict[str, str] = {}
    for first in range(0, len(tests), chunk):
        numbers = range(first, min(first + chunk, len(tests)))
        part = SceneChunk(tests.bands, [tests[k] for k in numbers])
        given = [exchange.GivenScene(tests.bands, tests.psf, s.image, s.variance, s.centers) for s in part]
        for entry in entries:
            n = max(0, min(entry.n_scene - first, len(given)))
            if not n or entry.deblender in ended:
                continue
            try:
                models = deblenders[entry.deblender].deblend(given[:n], **entry.settings)
            except Missing as reason:
                ended[entry.deblender] = f"ended at scenes {numbers[0]} to {numbers[n - 1]}: {reason}"
                print(f"{entry.deblender} {ended[entry.deblender]}", file=sys.stderr, flush=True)
                continue
            if not deblenders[entry.deblender].time_only:
                parts[entry.name].append(source_columns(models, SceneChunk(tests.bands, part.scenes[:n])))
            done[entry.name] += [dataclasses.replace(m, image=m.image[:0]) for m in models]  # images are large
        print(f"{numbers.stop} scenes, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    kept = [entry for entry in entries if entry.deblender not in ended]
    found = {e.name: {key: np.concatenate([part[key] for part in parts[e.name]]) for key in parts[e.name][0]}
             for e in kept if parts[e.name]}
    return found, {e.name: _cost(e, min(e.n_scene, len(tests)), done[e.name]) for e in kept}, ended


def start(folder: Path | None, bundle: str, first: exchange.GivenScene, work: Path) -> tuple[dict[str, Own | Peer],
                                                                                       dict[str, Any]]:
    """Start every deblender and let it do a scene unmeasured; also return its version, or why it is missing."""
    deblenders: dict[str, Own | Peer] = {}
    known: dict[str, Any] = {}
    for name in (OWN, *PEERS):
        try:
            own = work / name
            own.mkdir()
            deblender = Own(bundle) if name == OWN else Peer(name, environments.interpreter(folder, name), own)
            deblender.deblend([first])
        except Missing as reason:
            known[name] = {"missing": str(reason)}
            print(f"{name}: {reason}", file=sys.stderr)
            continue
        deblenders[name] = deblender
        known[name] = {"version": deblender.version, "how": deblender.how, "time_only": deblender.time_only}
    return deblenders, known


def summarise(columns: dict[str, FloatArray], snr: FloatArray, blendedness: FloatArray) -> dict[str, Any]:
    """`measures.summarise`, and the medians above SNR 20."""
    return {**measures.summarise(columns, snr, blendedness),
            "snr_above_20": {name: report.median(values[snr > 20]) for name, values in columns.items()}}


def nearer(peer: FloatArray, own: FloatArray, by: FloatArray, edges: tuple[float, ...]) -> list[dict[str, Any]]:
    """Fraction of sources in each bin whose error is smaller than deblendrt's. A failed source does not count."""
    rows = report.binned({}, by, edges)
    for row in rows:
        inside = (by >= row["low"]) & (by < row["high"])
        row["fraction"] = float((peer < own)[inside].mean()) if row["n"] else float("nan")
    return rows


def compare(found: dict[str, dict[str, FloatArray]], costs: dict[str, Any], tests: scenes.SceneSet) -> list[
        dict[str, Any]]:
    """Summaries for each number of scenes that entries did."""
    truth = measures.truth_columns(tests)
    r = tests.bands.index(measures.SHAPE_BAND)
    true_flux = tests.joined("flux")
    n_source = np.cumsum([len(flux) for flux in tests.every("flux")])
    floor = measures.flux_columns(truth["floor"], true_flux, tests.bands)
    floor |= {f"bias_{b}": truth["floor"][:, tests.bands.index(b)] / true_flux[:, tests.bands.index(b)] - 1
              for b in report.FLUX_BANDS}
    parts = []
    for n_scene in sorted({costs[name]["n_scene"] for name in found}, reverse=True):
        n = int(n_source[n_scene - 1])
        snr, blendedness = truth["snr"][:n, r], truth["blendedness"][:n, r]
        entries = {name: {key: values[:n] for key, values in columns.items()} for name, columns in found.items()
                   if costs[name]["n_scene"] >= n_scene}
        entries["noise floor"] = {key: values[:n] for key, values in floor.items()}
        own = entries[OWN]["flux_error_r"]
        parts.append({
            "n_scene": n_scene, "n_source": n,
            "summary": {name: summarise(columns, snr, blendedness) for name, columns in entries.items()},
            "nearer": {name: {"by_snr": nearer(columns["flux_error_r"], own, snr, report.SNR_EDGES),
                              "by_blendedness": nearer(columns["flux_error_r"], own, blendedness,
                                                       report.BLENDEDNESS_EDGES)}
                       for name, columns in entries.items() if name not in (OWN, "noise floor")}})
    return parts


def run_peers(tests: scenes.SceneSet, folder: Path | None, chunk: int = SCENES_AT_ONCE, *,
              entries: Sequence[DeblenderRun] = ENTRIES, bundle: str = "lsst",
              sources: Path | None = None) -> dict[str, Any]:
    """Run deblendrt and every peer on the same scenes, in turn, `chunk` scenes at a time, each on one thread.

    Call it below ``if __name__ == "__main__"``. Peers get the true positions, the variance and the PSF.

    Parameters
    ----------
    tests : scenes.SceneSet
        Scenes of `perf.scenes.load_scenes`.
    folder : Path or None
        The environments, made by `perf.peers.environments`; None for deblendrt alone.
    chunk : int
        Scenes of a turn. deblendrt takes them in one call.
    entries : sequence of DeblenderRun
        Deblenders, settings and numbers of scenes. An entry named "deblendrt" must have all scenes.
    bundle : str
        Shipped name or path.
    sources : Path, optional
        Also write every source's metrics to this .npz file, arrays ``ENTRY/METRIC``.

    Returns
    -------
    dict
        Plain values, ready for JSON:

        - ``scenes_at_once``: `chunk`.
        - ``deblenders``: by name ``{"version", "how", "time_only"}``, with `time_only` empty or the reason why only its
          time is meaningful; or ``{"missing": reason}``, and then the lists below lack its entries.
        - ``costs``: by entry ``{"deblender", "settings", "n_scene", "n_source", "ms_per_source", "iterations",
          "errors", "n_missed"}``.
          ``ms_per_source`` [ms]: ``processor`` and ``wall``, both without compilation, and ``processor_compiling`` and
          ``wall_compiling``. ``iterations``: of each scene, if known. ``errors``: of each failed scene. ``n_missed``:
          positions at which a deblender with its own detection found nothing.
        - ``accuracy``: by entry the median of each metric (`perf.metrics`; fractions, magnitudes) over all sources of
          the same scenes that its times are of. Entries with `time_only` are not in it.
        - ``parts``: for each number of scenes that entries did, the largest first, ``{"n_scene", "n_source",
          "summary", "nearer"}`` over those first scenes and the entries that did them all and may be judged.
          ``summary``: by entry, and for the "noise floor", medians under ``all``, ``blendedness_above_0.3`` and
          ``snr_above_20``, and as lists of bins (`report.binned`) under ``by_snr`` and ``by_blendedness``.
          ``nearer``: by entry, how often its flux in r is nearer to the truth than deblendrt's, per bin.
    """
    with tempfile.TemporaryDirectory() as work:
        scene = tests[0]
        first = exchange.GivenScene(tests.bands, tests.psf, scene.image, scene.variance, scene.centers)
        deblenders, known = start(folder, bundle, first, Path(work))
        try:
            found, costs, ended = run([e for e in entries if e.deblender in deblenders], deblenders, tests, chunk)
        finally:
            for deblender in deblenders.values():
                deblender.close()
    known |= {name: {"missing": reason} for name, reason in ended.items()}
    if sources:
        np.savez(sources, **{f"{name}/{key}": v for name, columns in found.items() for key, v in columns.items()})
    parts = compare(found, costs, tests)
    own_part = {part["n_scene"]: part["summary"] for part in parts}
    return {"scenes_at_once": chunk, "deblenders": known, "costs": costs, "parts": parts,
            "accuracy": {name: own_part[costs[name]["n_scene"]][name]["all"] for name in found}}
