"""Shards of the sky handed to the cores of a cluster: a simulation, and its inputs."""

from __future__ import annotations

import dataclasses
import heapq
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
NODES = (1, 10, 100)
SEED = 20_261_124
PIXEL_SCALE = 0.2  # arcsec
SIDE = 4000  # pixel: side of a CCD and of a patch
PIXEL_BYTES = 12.0  # image and variance in float32, and an int32 mask, per band
RESULT_BYTES = 5e3  # a source's row and covariances in the FITS file of `DeblendResult.write`, without images
PATCH_PARTS = 25  # the engine divides 4000 x 4000 pixels into these: `perf/results/patch.md`
PARETO, LARGEST_BLEND = 2.2, 100.0  # time of a blend: index of the tail, and largest over least time
DENSITY_SCATTER = 0.3  # of ln(sources per shard), in addition to Poisson scatter
VISIT_INTERVAL = 39.0  # s: 30 exposing, 9 for shutter, readout, slew and settle
PLACEHOLDER_MS, PLACEHOLDER_ONE_BAND_MS, PLACEHOLDER_START = 70.0, 15.0, 1.5


@dataclasses.dataclass(frozen=True)
class Machine:
    """A cluster of equal nodes.

    Attributes
    ----------
    n_node, n_core : int
        Nodes, and cores of each.
    start : float [s]
        Start of a process until its model is loaded, once for each core.
    node_bandwidth, shared_bandwidth : float [byte/s]
        Bandwidth of a node's connection to the storage, and of the storage itself.
    slow_fraction, slow_factor : float
        This fraction of the cores is slower by this factor.
    """

    n_node: int
    n_core: int = 64
    start: float = PLACEHOLDER_START
    node_bandwidth: float = 1e9
    shared_bandwidth: float = 50e9
    slow_fraction: float = 0.02
    slow_factor: float = 2.0

    @property
    def n_worker(self) -> int:
        """Number of cores, each with a process of its own."""
        return self.n_node * self.n_core

    @property
    def bandwidth(self) -> float:
        """Bandwidth of a core while all cores read or write [byte/s]."""
        return min(self.node_bandwidth / self.n_core, self.shared_bandwidth / self.n_worker)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A job.

    Attributes
    ----------
    name : str
    n_shard : int
        Parts that are computed independently.
    per_shard : float
        Mean number of sources of a shard.
    seconds : float [s]
        Time of a core for a source.
    bytes_in : float [byte]
        Read per shard.
    arrivals : tuple of float [s]
        When equal shares of the shards arrive.
    """

    name: str
    n_shard: int
    per_shard: float
    seconds: float
    bytes_in: float
    arrivals: tuple[float, ...] = (0.0,)

    @property
    def n_source(self) -> float:
        """Number of sources."""
        return self.n_shard * self.per_shard


def workloads(ms: float, one_band_ms: float) -> list[Workload]:
    """The jobs of the page; `NUMBER_SOURCES` gives the origin of their numbers."""
    patch_bytes = PIXEL_BYTES * SIDE**2
    patch_area = (SIDE * PIXEL_SCALE / 3600) ** 2  # square degrees
    n_patch = round(18_000 / patch_area)
    visit_sources, ccds = 9.01e11 / (1000 * 300), 189
    visit_parts = ccds * PATCH_PARTS
    both = (0.0, VISIT_INTERVAL)
    return [
        Workload("a visit's alerts, two visits", 2 * ccds, 1e4 / ccds, 1e-3 * one_band_ms,
                 1e4 / ccds * 41**2 * PIXEL_BYTES, both),
        Workload("all sources of two visits, one band", 2 * visit_parts, visit_sources / visit_parts,
                 1e-3 * one_band_ms, patch_bytes / PATCH_PARTS, both),
        Workload("a coadd patch, six bands", PATCH_PARTS, 10_132 / PATCH_PARTS, 1e-3 * ms,
                 6 * patch_bytes / PATCH_PARTS),
        Workload("DR1 at DP1's density", n_patch, 2.3e6 / 15 * 18_000 / n_patch, 1e-3 * ms, 6 * patch_bytes),
        Workload("DR1 of the sizing model", n_patch, 2.75e10 / n_patch, 1e-3 * ms, 6 * patch_bytes),
    ]


NUMBER_SOURCES = (
    "Field of view 9.6 square degrees, 189 science CCDs of 4k x 4k pixels of 0.2 arcsec, 20 billion galaxies after ten "
    "years: Ivezić et al. 2019 (ApJ 873, 111; arXiv:0805.2366). About 10,000 transients a visit, alerts within 60 s, "
    "18,000 square degrees, over 38 billion stars and galaxies after ten years: Data Products Definition Document "
    "[LSE-163](https://ls.st/dpdd).",
    "39 s from visit to visit: 30 s of exposure, 2 s of shutter, 2 s of readout, 5 s of slew and settle: Ivezić et al.",
    "Sources of a visit: 9.01e11 in the survey's first year, of at most 1000 visits in each of 300 nights, so 3.0 "
    "million a visit, stars and the Galactic plane included: sizing model [DMTN-135](https://dmtn-135.lsst.io), table "
    "of inputs, from LSE-81. It also has 1188 cores as what alert production needs to keep up, and 4.1e7 core-hours "
    "for the first year's data release, all of its processing.",
    "DR1: 2.75e10 objects in the sizing model's first year (DMTN-135), stars included, over 18,000 square degrees. "
    "That is ten times the density that has been seen: 2.3 million objects in 15 square degrees in Data Preview 1 "
    "(arXiv:2603.23786), 2.8e9 over 18,000. Both are simulated; the release should lie between.",
    "A coadd patch: 4000 x 4000 pixels, 10,132 galaxies to i = 25.3, `perf/results/patch.md`. The release's patches "
    "are taken as large.",
)
RELEASE_HOURS = 4.1e7  # core-hours of all processing of the first release: DMTN-135


def blend_moments() -> tuple[float, float]:
    """Mean and standard deviation of a blend's time in units of the least: a truncated Pareto law."""
    rng = np.random.default_rng(SEED)
    times = np.minimum(1 + rng.pareto(PARETO, 1_000_000), LARGEST_BLEND)
    return float(times.mean()), float(times.std())


def shard_seconds(workload: Workload, rng: np.random.Generator) -> FloatArray:
    """Computing time of every shard on a core, float64 (n_shard,) [s].

    The number of blends is Poisson about a density that varies, and their times are independent. The sum over the many
    blends of a shard is drawn as a Gaussian with their moments, and normalised to the workload's total.
    """
    mean, std = blend_moments()
    density = np.exp(DENSITY_SCATTER * rng.standard_normal(workload.n_shard))
    count = np.maximum(rng.poisson(workload.per_shard * density), 1).astype(float)
    seconds = np.maximum(count + np.sqrt(count) * std / mean * rng.standard_normal(workload.n_shard), 0.2 * count)
    return seconds * (workload.n_source * workload.seconds / seconds.sum())


@dataclasses.dataclass(frozen=True)
class Run:
    """Times of a simulated run.

    Attributes
    ----------
    finish : float [s]
        From the first arrival to the end of the last shard.
    latest : float [s]
        From the last arrival to the end of the last shard.
    busy : float [s]
        Sum of the computing times of the cores.
    efficiency : float
        Computing time of a fast core over the number of cores times `finish`.
    done : int
        Number of shards.
    limit : str
        The largest of the bounds on the time for the shards of one arrival.
    """

    finish: float
    latest: float
    busy: float
    efficiency: float
    done: int
    limit: str


def simulate(workload: Workload, machine: Machine, *, ahead: bool = False, seed: int = SEED) -> Run:
    """Simulate, event by event, which core takes which shard and when it ends.

    Parameters
    ----------
    workload : Workload
    machine : Machine
    ahead : bool
        Whether shards are dealt to cores in turn at the start; otherwise a core takes a shard when it is free.
    seed : int
    """
    rng = np.random.default_rng(seed)
    compute = shard_seconds(workload, rng)
    transfer = (workload.bytes_in + RESULT_BYTES * workload.per_shard) / machine.bandwidth
    arrival = np.repeat(workload.arrivals, -(-workload.n_shard // len(workload.arrivals)))[: workload.n_shard]
    n_slow = int(np.ceil(machine.slow_fraction * machine.n_worker))
    slow = rng.permutation(np.where(np.arange(machine.n_worker) < n_slow, machine.slow_factor, 1.0)).tolist()
    free = [(machine.start, k) for k in range(machine.n_worker)]  # a heap: all alike
    ends = [machine.start] * machine.n_worker
    busy, finish = 0.0, 0.0
    for i, (seconds, at) in enumerate(zip(compute.tolist(), arrival.tolist(), strict=True)):
        if ahead:
            worker = i % machine.n_worker
            begin = ends[worker]
        else:
            begin, worker = heapq.heappop(free)
        end = max(begin, at) + transfer + slow[worker] * seconds
        busy += slow[worker] * seconds
        finish = max(finish, end)
        ends[worker] = end
        if not ahead:
            heapq.heappush(free, (end, worker))
    total, n_arrival = float(compute.sum()), len(workload.arrivals)
    bounds = {"arithmetic": total / machine.n_worker / n_arrival, "the largest shard": float(compute.max()),
              "reading and writing": transfer * max(1.0, workload.n_shard / machine.n_worker / n_arrival),
              "the start of processes": max(0.0, machine.start - float(arrival.max()))}
    return Run(finish, finish - float(arrival.max()), busy, total / (machine.n_worker * finish), len(compute),
               max(bounds, key=lambda name: bounds[name]))


def matmul_gflops(size: int = 1024, seconds: float = 0.5) -> float:
    """Rate of NumPy's float32 products on this core [GFLOP/s]: the best of some, because the machine is shared."""
    a = np.ones((size, size), np.float32)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def measured(path: Path) -> dict[str, float]:
    """Figures of a core that `perf.studies.cpu` has stored; empty if it has not run."""
    if not path.exists():
        return {}
    found: dict[str, float] = json.loads(path.read_text()).get("summary", {})
    return found
