"""The engine on the kernels, compiled for the host, against the CPU engine on the test scenes, and against rounding.

    python -m perf.gpu.parity [--scenes 13] [--cache FOLDER]

Prints, in units of the errors, how far fluxes are from the CPU engine's, and how far the CPU engine's own move when
every pixel is rounded at 6e-8; and the radii of the sources' light that the start finds. No GPU is needed: the kernels
run as in the tests (tests/shim, g++), in a minute for 13 scenes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np

from deblendrt.engine.compute.cuda.streams import DevicePool
from deblendrt.engine.compute.problem import DoubleArray, FloatArray, Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.result.result import DeblendResult
from deblendrt.engine.solve import start
from perf.scenes import load_scenes

SHIM = Path(__file__).parents[2] / "tests" / "shim"
ROUNDING = 6e-8  # of a float32


def difference(a: DeblendResult, b: DeblendResult) -> DoubleArray:
    """Largest difference of a source's fluxes, in units of the errors of b, float64 (n_source,)."""
    return np.asarray(np.nanmax(np.abs(a.flux - b.flux) / b.flux_err, axis=1))


def describe(name: str, off: DoubleArray) -> str:
    """One line on some differences."""
    return f"{name}: {len(off)} sources, {(off > 1e-3).sum()} above 0.001, largest {off.max():.2g}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=13)
    parser.add_argument("--cache", type=Path, default=None)
    arguments = parser.parse_args()
    sys.path.insert(0, str(SHIM))
    from shim import ShimDevice

    scenes = load_scenes(arguments.cache, 60)
    some = [scenes[k] for k in range(arguments.scenes)]
    images, centers, variance = ([getattr(s, name) for s in some] for name in ("image", "centers", "variance"))
    cpu = Deblender.load("lsst")
    expected = cpu.deblend_batch(images, centers, variance=variance, psf="nominal", detail=False)
    pool = DevicePool.open(cpu.bundle, ShimDevice, 1)
    result = Deblender(cpu.bundle, cpu.runtime, pool).deblend_batch(images, centers, variance=variance, psf="nominal",
                                                                    detail=False)
    off = difference(result, expected)
    median = np.nanmedian(np.abs(result.flux - expected.flux) / expected.flux_err)
    print(describe("kernels", off) + f", median of all fluxes {median:.1g}, flags that differ: "
          f"{(result.flags != expected.flags).sum()}")
    print(describe("kernels, sources without flags", off[expected.flags == 0]))
    rng = np.random.default_rng(1)
    rounded = [(i * (1 + ROUNDING * rng.choice([-1, 1], i.shape))).astype(np.float32) for i in images]
    print(describe("CPU engine, pixels rounded", difference(cpu.deblend_batch(rounded, centers, variance=variance,
                                                                              psf="nominal", detail=False),
                                                            expected)))
    radii = []
    measure = start.light_radius

    def noted(problem: Problem, coefficients: FloatArray) -> DoubleArray:
        radii.append(measure(problem, coefficients))
        return radii[-1]

    with mock.patch.object(start, "light_radius", noted):
        cpu.deblend_batch([s.image for s in scenes], [s.centers for s in scenes],
                          variance=[s.variance for s in scenes], n_iteration=0, robust=False, psf="nominal",
                          detail=False)
    radius = np.concatenate(radii)
    print(f"light within 13 pixels: {(radius < 13).mean():.0%} of {len(radius)} sources of {len(scenes)} scenes")


if __name__ == "__main__":
    main()
