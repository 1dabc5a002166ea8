"""deblendrt beside scarlet_lite and scarlet2: ``python -m perf.peers --python PEER=INTERPRETER ...`` from a clone.

Every deblender gets the same test scenes (`perf.scenes`), in turn, ten scenes at a time, with the true positions, the
variance and the PSF; each on one thread, timed by the processor's clock, which other work on the machine disturbs less
than the wall's. A peer runs in an environment of its own, made once:

- scarlet2: ``python -m venv ENV && ENV/bin/pip install -r perf/peers/scarlet2.txt``
- scarlet_lite is not on PyPI: install ``lsst-scarlet-lite`` from https://github.com/lsst/scarlet_lite as it says there.

Then ``--python scarlet2=ENV/bin/python``. A peer that is not there gets a line that says why. Metrics: `perf.metrics`.
Written: ``peers.json``, ``peers.md`` and ``peers.png`` in ``perf/results``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deblendrt.training import simulate
from perf import accuracy, report, scenes
from perf.peers import exchange, page
from perf.peers.peer import Missing, Own, Peer

FloatArray = NDArray[np.float64]
OWN = "deblendrt"
PEERS = ("scarlet_lite", "scarlet2")
SCENES_AT_ONCE = 10


@dataclass(frozen=True)
class Entry:
    """A deblender with its settings, and the number of scenes that it gets: the slow ones fewer."""

    name: str
    deblender: str
    settings: dict[str, float]
    n_scene: int = scenes.N_SCENE


ENTRIES = (
    Entry("deblendrt", OWN, {"center_sigma": 0.2}),
    Entry("deblendrt, centres known", OWN, {"center_sigma": 0.03}),
    Entry("scarlet_lite", "scarlet_lite", {"max_iter": 200, "e_rel": 1e-4}),
    Entry("scarlet_lite, run long", "scarlet_lite", {"max_iter": 1000, "e_rel": 1e-6}, 50),
    Entry("scarlet2", "scarlet2", {"max_iter": 1000, "e_rel": 1e-4}, 50),
)


@dataclass(frozen=True)
class Chunk:
    """Some test scenes, as `accuracy.image_columns` reads them."""

    bands: tuple[str, ...]
    scenes: list[simulate.SimulatedScene]

    def __iter__(self) -> Iterator[simulate.SimulatedScene]:
        return iter(self.scenes)


class Stamps:
    """Models of whole scenes, as `accuracy.image_columns` reads them."""

    def __init__(self, models: list[exchange.Model]) -> None:
        self._images = [image for model in models for image in model.image]

    def stamps(self, i: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """The model image of source i, and its corner."""
        return self._images[i], (0, 0)


def source_columns(models: list[exchange.Model], chunk: Chunk) -> dict[str, FloatArray]:
    """Every metric of every source; NaN where the deblender failed."""
    flux, true = np.concatenate([m.flux for m in models]), np.concatenate([s.flux for s in chunk.scenes])
    columns = accuracy.flux_columns(flux, true, chunk.bands) | accuracy.image_columns(Stamps(models), chunk)
    failed = ~np.isfinite(flux).all(1)
    columns = {name: np.where(failed, np.nan, values) for name, values in columns.items()}
    for band in report.FLUX_BANDS:
        b = chunk.bands.index(band)
        columns[f"bias_{band}"] = flux[:, b] / true[:, b] - 1
    return columns


def run(entries: list[Entry], deblenders: dict[str, Own | Peer], tests: scenes.SceneSet) -> tuple[dict[str, Any],
                                                                                                   dict[str, Any]]:
    """All entries in turn on ten scenes at a time: columns per source, and costs."""
    found: dict[str, list[dict[str, FloatArray]]] = {entry.name: [] for entry in entries}
    costs: dict[str, dict[str, Any]] = {
        entry.name: {"settings": entry.settings, "n_scene": min(entry.n_scene, len(tests)), "n_source": 0,
                     "seconds": 0.0, "compile_seconds": 0.0, "iterations": [], "errors": []} for entry in entries}
    for first in range(0, len(tests), SCENES_AT_ONCE):
        numbers = range(first, min(first + SCENES_AT_ONCE, len(tests)))
        chunk = Chunk(tests.bands, [tests[k] for k in numbers])
        given = [exchange.Scene(tests.bands, tests.psf, s.image, s.variance, s.centers) for s in chunk]
        for entry in entries:
            n = max(0, min(entry.n_scene - first, len(given)))
            if not n:
                continue
            cost = costs[entry.name]
            models = deblenders[entry.deblender].deblend(given[:n], **entry.settings)
            cost["n_source"] += sum(len(m.flux) for m in models)
            cost["seconds"] += sum(m.seconds for m in models)
            cost["compile_seconds"] += sum(m.compile_seconds for m in models)
            cost["iterations"] += [m.iterations for m in models if m.iterations >= 0]
            cost["errors"] += [f"scene {k}: {m.error}" for k, m in zip(numbers, models, strict=False) if m.error]
            found[entry.name].append(source_columns(models, Chunk(tests.bands, chunk.scenes[:n])))
        print(f"{numbers.stop} scenes, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return {name: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            for name, parts in found.items()}, costs


def start(python: dict[str, Path], bundle: str, first: exchange.Scene, folder: Path) -> tuple[dict[str, Own | Peer],
                                                                                             dict[str, Any]]:
    """Start every deblender and let it do one scene unmeasured; also what each one is, or why it is missing."""
    deblenders: dict[str, Own | Peer] = {}
    known: dict[str, Any] = {}
    for name in (OWN, *PEERS):
        try:
            own = folder / name
            own.mkdir()
            deblender = Own(bundle) if name == OWN else Peer(name, python.get(name, Path("python")), own)
        except Missing as reason:
            known[name] = {"missing": str(reason)}
            print(f"{name}: {reason}", file=sys.stderr)
            continue
        deblender.deblend([first])
        deblenders[name] = deblender
        known[name] = {"version": deblender.version, "how": deblender.how}
    return deblenders, known


def summarise(columns: dict[str, FloatArray], snr: FloatArray, blendedness: FloatArray) -> dict[str, Any]:
    """`accuracy.summarise`, and the medians above SNR 20."""
    return {**accuracy.summarise(columns, snr, blendedness),
            "snr_above_20": {name: report.median(values[snr > 20]) for name, values in columns.items()}}


def nearer(peer: FloatArray, own: FloatArray, by: FloatArray, edges: tuple[float, ...]) -> list[dict[str, Any]]:
    """How often a peer's error is smaller than deblendrt's, per bin; a failed source is not nearer."""
    rows = report.binned({}, by, edges)
    for row in rows:
        inside = (by >= row["low"]) & (by < row["high"])
        row["fraction"] = float((peer < own)[inside].mean()) if row["n"] else float("nan")
    return rows


def compare(found: dict[str, Any], costs: dict[str, Any], tests: scenes.SceneSet) -> list[dict[str, Any]]:
    """Summaries of the entries that did all scenes, and of all entries on the scenes that all did."""
    truth = accuracy.truth_columns(tests)
    r = tests.bands.index(accuracy.SHAPE_BAND)
    true_flux = np.concatenate([tests.field("flux", k) for k in range(len(tests))])
    n_source = np.cumsum([len(tests.field("flux", k)) for k in range(len(tests))])
    floor = accuracy.flux_columns(truth["floor"], true_flux, tests.bands)
    floor |= {f"bias_{b}": truth["floor"][:, tests.bands.index(b)] / true_flux[:, tests.bands.index(b)] - 1
              for b in report.FLUX_BANDS}
    parts = []
    for n_scene in sorted({cost["n_scene"] for cost in costs.values()}, reverse=True):
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


def interpreters(given: list[str]) -> dict[str, Path]:
    """Of ``PEER=INTERPRETER``; ValueError for an unknown peer."""
    found = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in PEERS or not path:
            raise ValueError(f"--python: expected one of {', '.join(PEERS)}, then = and an interpreter; got {text!r}")
        found[name] = Path(path).expanduser().absolute()  # resolved, a virtual environment's link would lose it
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], metavar="PEER=INTERPRETER", help="repeatable")
    parser.add_argument("--bundle", default="lsst", help="shipped name or path of a bundle")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the test scenes; ~/.cache/deblendrt")
    parser.add_argument("--n-scene", type=int, default=scenes.N_SCENE, help="fewer, for a quick look")
    parser.add_argument("--sources", type=Path, help="also write every source's metrics to this .npz file")
    parser.add_argument("--out", type=Path, default=accuracy.RESULTS, help="folder of the page, figure and JSON file")
    args = parser.parse_args(argv)
    try:
        python = interpreters(args.python)
    except ValueError as error:
        parser.error(str(error))
    begin, load = time.perf_counter(), os.getloadavg()[0]
    tests = scenes.load_scenes(args.cache, args.n_scene)
    with tempfile.TemporaryDirectory() as folder:
        scene = tests[0]
        first = exchange.Scene(tests.bands, tests.psf, scene.image, scene.variance, scene.centers)
        deblenders, known = start(python, args.bundle, first, Path(folder))
        found, costs = run([e for e in ENTRIES if e.deblender in deblenders], deblenders, tests)
        for deblender in deblenders.values():
            deblender.close()
    command = "python -m perf.peers" + (f" --n-scene {len(tests)}" if len(tests) != scenes.N_SCENE else "")
    figures = {"command": command, "scenes_sha256": tests.sha256, "n_scene": len(tests), "deblenders": known,
               "costs": costs, "parts": compare(found, costs, tests),
               "environment": report.environment(), "load": [load, *os.getloadavg()[::2]],
               "seconds": time.perf_counter() - begin}
    if args.sources:
        np.savez(args.sources, **{f"{name}/{key}": v for name, columns in found.items() for key, v in columns.items()})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.json").write_text(json.dumps(figures, indent=1) + "\n")
    page.draw(figures, args.out / "peers.png")
    text = page.markdown(figures)
    (args.out / "peers.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
