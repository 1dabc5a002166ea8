r"""Response of ellipticities to shear, before and after deblending: a ring test.

    python -m perf.studies.shear

Each galaxy is drawn at two position angles, 90 degrees apart, under g1 = +0.02 and -0.02 with the same noise
(`scenes`), alone and with a neighbour. So its own shape cancels, and most of the noise. The mean change of an
ellipticity, over the change of the same measurement on the noiseless, isolated galaxy, gives m (`bias`). The change
between a round and an elliptical PSF, again with the same noise, gives c. The measurements (`shapes`), all in i, are:

- model: ``result.ellipticity``, adaptive moments of the model under the reference PSF. The truth is the galaxy drawn
  under the reference PSF, so errors of the decoder and of the deconvolution are part of m.
- model, PSF removed: the same moments less those of the reference PSF. Small galaxies keep this ellipticity.
- regauss: re-Gaussianisation (Hirata & Seljak 2003, MNRAS 343, 459) by GalSim's HSM, on the image as it is; on the
  image less the models of the neighbours; and on the redistributed image. The truth is the same measurement on the
  galaxy's noiseless image, so the bias of the method itself is left out.

The study writes ``shear.json``, ``shear.md`` and ``shear.png`` into ``perf/results``.
"""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import galsim
import numpy as np
from numpy.typing import NDArray

from deblendrt.engine.deblender import Deblender
from perf import metrics, report, study
from perf.studies.shear import bias, page, shapes
from perf.studies.shear import scenes as ring
from perf.studies.shear.bias import ELLIPTICAL, MINUS, PLUS, Columns

SHEAR = 0.02
PSF_ELLIPTICITY = 0.05
BAND = "i"
N_GALAXY, N_QUICK = 256, 2
GROUP = 16  # galaxies of a call
EVERY = 4  # one of four groups is also measured with the elliptical PSF and without noise: both scatter little

FloatArray = NDArray[np.float64]


def measure(deblender: Deblender, pairs: ring.Pairs, path: Path | None = None) -> Columns:
    """Measure every ellipticity of every galaxy.

    Parameters
    ----------
    deblender : Deblender
    pairs : Pairs
    path : Path, optional
        A NumPy file that keeps the measurements group by group. A run that was stopped continues from it.

    Returns
    -------
    dict of str to float64 (n, n_angle, 3)
        "<source>: <measurement>", by galaxy, position angle, and (PLUS, MINUS, ELLIPTICAL). "isolated" and "isolated,
        no noise" are the target alone; "brighter" and "fainter" are target and neighbour of the blend; "true brighter"
        and "true fainter" are each of them alone and without noise. NaN if not measured or failed. "seconds" is the
        processor time of a galaxy.
    """
    shape = (len(pairs), len(ring.ANGLES), 3)
    columns: Columns = collections.defaultdict(lambda: np.full(shape, np.nan))
    done = 0
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as stored:
            done = int(stored["done"])
            for name in set(stored) - {"done"}:
                columns[name][:done] = stored[name][: len(pairs)]
    for number, start in enumerate(range(0, len(pairs), GROUP)):
        if start < done:
            continue
        before = time.process_time()
        rows = range(start, min(start + GROUP, len(pairs)))
        also = number % EVERY == 0
        for kind in (PLUS, MINUS, ELLIPTICAL)[: 3 if also else 2]:
            _measure_group(columns, deblender, pairs, rows, kind, also and kind != ELLIPTICAL)
        columns["seconds"][rows.start : rows.stop] = (time.process_time() - before) / len(rows)
        print(f"{rows.stop} of {len(pairs)} galaxies", file=sys.stderr)
        if path is not None:
            partial = path.with_suffix(".part.npz")
            np.savez(partial, done=np.array(rows.stop), **{name: c[: rows.stop] for name, c in columns.items()})
            partial.replace(path)
    return dict(columns)


def _measure_group(columns: Columns, deblender: Deblender, pairs: ring.Pairs, rows: range, kind: int,
                   noiseless: bool) -> None:
    """Measure one kind of image of some galaxies, and fill in the columns."""
    psf, shear = (pairs.elliptical_psf if kind == ELLIPTICAL else pairs.psf), (-SHEAR if kind == MINUS else SHEAR)
    band, sigma = pairs.depth.bands.index(BAND), deblender.bundle.reference_psf_sigma
    images = [(k, a) for k in rows for a in range(len(ring.ANGLES))]
    truth = [ring.observed(pairs, k, ring.ANGLES[a], shear, psf) for k, a in images]
    center = [ring.turned(pairs.center[k], ring.ANGLES[a]) for k, a in images]
    noise = [ring.deviates(pairs, k, ring.ANGLES[a]) for k, a in images]
    alone = [ring.exposed(t[0], n, pairs.depth) for t, n in zip(truth, noise, strict=True)]
    blend = [ring.exposed(t.sum(0), n, pairs.depth) for t, n in zip(truth, noise, strict=True)]

    def deblend(image: list[Any], exposed: list[Any], n_source: int) -> Any:
        return deblender.deblend_batch(image, [c[:n_source] + ring.SIZE // 2 for c in center], psf=psf.image,
                                       variance=[variance for _, variance in exposed], bands=pairs.depth.bands)

    single, pair = deblend([i for i, _ in alone], alone, 1), deblend([i for i, _ in blend], blend, 2)
    put = _writer(columns, images, kind)
    models = {"isolated": (single, slice(None)), "brighter": (pair, slice(0, None, 2)),
              "fainter": (pair, slice(1, None, 2))}
    if noiseless:
        models["isolated, no noise"] = (deblend([t[0].astype(np.float32) for t in truth], alone, 1), slice(None))
    for who, (result, which) in models.items():
        _put_moments(put, who, result.moments[which], sigma)
        image, middle = shapes.model_images(deblender, result, band)
        put(f"{who}: response", shapes.model_response(image[which], middle[which], sigma))
        put(f"{who}: error", result.ellipticity_err[which, 0])
        put(f"{who}: trusted", result.trusted[which])
    for j, who in enumerate(("true brighter", "true fainter")):
        offset = np.array([c[j] - np.rint(c[j]) for c in center])
        drawn = np.array([shapes.reference_image(pairs, 2 * k + j, at, ring.ANGLES[a], shear, sigma, band)
                          for (k, a), at in zip(images, offset, strict=True)])
        _put_moments(put, who, shapes.moments(drawn, offset + shapes.STAMP // 2), sigma)
    for name, (image, j) in _planes(truth, alone, blend, single, pair, band).items():
        found = [shapes.regauss(plane, psf.image[band], float(pairs.depth.sky_sigma[band] ** 2),
                                      c[j] + ring.SIZE // 2) for plane, c in zip(image, center, strict=True)]
        put(name, np.array([e1 for e1, _ in found]))
        put(f"{name}, resolution", np.array([resolution for _, resolution in found]))


def _writer(columns: Columns, images: list[tuple[int, int]], kind: int) -> Callable[[str, NDArray[Any]], None]:
    k, a = np.array(images).T

    def put(name: str, values: NDArray[Any]) -> None:
        columns[name][k, a, kind] = values

    return put


def _put_moments(put: Callable[[str, NDArray[Any]], None], who: str, moments: FloatArray, psf_sigma: float) -> None:
    put(f"{who}: model", shapes.first_ellipticity(moments))
    put(f"{who}: model, PSF removed", shapes.first_ellipticity(moments, psf_sigma**2))
    put(f"{who}: size", moments[:, 0] + moments[:, 1])


def _planes(truth: list[Any], alone: list[Any], blend: list[Any], single: Any, pair: Any,
            band: int) -> dict[str, tuple[list[NDArray[Any]], int]]:
    """Every image that regauss measures, with 0 for the target's position and 1 for the neighbour's."""
    shape, n = (ring.SIZE, ring.SIZE), len(truth)
    bright, faint = ([metrics.place(*pair.stamps(2 * i + j), shape)[band] for i in range(n)] for j in (0, 1))
    observed = [image[band] for image, _ in blend]

    def redistributed(result: Any, step: int, j: int) -> list[NDArray[Any]]:
        return [metrics.place(*result.redistributed(step * i + j), shape)[band] for i in range(n)]

    def less(models: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [image - model for image, model in zip(observed, models, strict=True)]

    return {"true brighter: regauss": ([t[0, band] for t in truth], 0),
            "true fainter: regauss": ([t[1, band] for t in truth], 1),
            "isolated: regauss": ([image[band] for image, _ in alone], 0),
            "isolated: regauss, redistributed": (redistributed(single, 1, 0), 0),
            "brighter: regauss": (observed, 0), "fainter: regauss": (observed, 1),
            "brighter: regauss, neighbours subtracted": (less(faint), 0),
            "fainter: regauss, neighbours subtracted": (less(bright), 1),
            "brighter: regauss, redistributed": (redistributed(pair, 2, 0), 0),
            "fainter: regauss, redistributed": (redistributed(pair, 2, 1), 1)}


def _named(value: Any) -> Any:
    """Figures as dictionaries, for JSON."""
    if isinstance(value, bias.Figure):
        return value._asdict()
    return {key: _named(item) for key, item in value.items()} if isinstance(value, dict) else value


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    parser = study.parser("perf.studies.shear", __doc__)
    parser.add_argument("--n-galaxy", type=int, default=N_GALAXY)
    parser.add_argument("--quick", action="store_true", help=f"{N_QUICK} galaxies: does it run?")
    parser.add_argument("--columns", type=Path, help="NumPy file of the measurements; a stopped run continues from it")
    args = parser.parse_args(argv)
    n = N_QUICK if args.quick else args.n_galaxy
    pairs = ring.draw_pairs(n, PSF_ELLIPTICITY)
    columns = measure(Deblender.load(args.bundle), pairs, args.columns)
    separation = np.hypot(*(pairs.center[:, 1] - pairs.center[:, 0]).T) * pairs.depth.pixel_scale
    figures: dict[str, Any] = {
        "bundle": args.bundle, "n_galaxy": n, "shear": SHEAR, "psf_ellipticity": PSF_ELLIPTICITY,
        "psf_shear": galsim.Shear(e1=PSF_ELLIPTICITY).g1,
        "n_resolved": int(bias.resolved(columns, "true brighter").sum()),
        "biases": bias.summarise(columns, pairs.galaxies.magnitude.reshape(n, 2), separation, SHEAR),
        "regauss_leakage": bias.noiseless_leakage(columns, SHEAR),
        "seconds": float(columns["seconds"][:, 0, 0].sum()), "environment": report.environment()}
    figures["command"] = study.command(parser, args)
    study.store(args.out, "shear", _named(figures), page.markdown(figures))
    page.draw(figures["biases"], args.out / "shear.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
