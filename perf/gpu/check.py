"""The engine on a GPU: the same answers as on the CPU, and how fast.

    python -m perf.gpu.check --out OUT [--sizes 100 1000 10000 100000] [--seconds 120]

Writes OUT/gpu.json and OUT/gpu.md, anew after every figure, so that a run that is cut off loses none. First parity with
the CPU engine on the same scenes and bits from run to run; then the copying speed of the card, latency of one scene,
every kernel's time, the descent alone against the same in PyTorch, sources per second against their number, and the
CPU engine on the same machine. Sizes that would take longer than `--seconds` are left out and named; a section that
fails says why, the others run.
"""

from __future__ import annotations

import argparse
import collections
import cProfile
import importlib.metadata
import io
import json
import os
import platform
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from deblendrt.cuda.driver.cuda_device import CudaDevice, open_device
from deblendrt.cuda.driver.device import Argument, Device
from deblendrt.engine.compute.cuda.model import DeviceModel
from deblendrt.engine.compute.cuda.streams import DevicePool, DeviceStream
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.model.cuda_kernels import CudaRuntime
from deblendrt.engine.result.result import DeblendResult
from perf.gpu import descent_alone
from perf.gpu.drawn_scenes import DrawnScenes, draw_scenes
from perf.gpu.report import Report
from perf.gpu.roofline import page

N_PARITY = 60  # scenes
N_POOL = 400  # scenes; larger batches repeat them
N_LATENCY = 200  # runs
COPIED = 1 << 30  # byte
PACKAGES = ("deblendrt", "numpy", "onnxruntime", "onnx", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "torch")


class Timed:
    """A device that waits after every launch and adds up each kernel's time.

    On a GPU the time between two events around the launch, which leaves the host's part out.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.count: dict[str, int] = collections.defaultdict(int)
        self._events: Any = None
        if isinstance(device, CudaDevice):
            with device._current():
                self._events = [device.driver("cuEventCreate", 0) for _ in range(2)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Argument,
               shared: int = 0) -> None:
        """See `Device`."""
        self.device.synchronize()
        start = self._mark(0)
        self.device.launch(kernel, grid, block, *arguments, shared=shared)
        end = self._mark(1)
        self.device.synchronize()
        if self._events is None:
            seconds = time.perf_counter() - start
        else:
            with self.device._current():
                seconds = 1e-3 * self.device.driver("cuEventElapsedTime", start, end)
        self.seconds[kernel] += seconds
        self.count[kernel] += 1

    def record(self, work: Callable[[], None]) -> Any:
        """Work that is launched kernel by kernel, every time: see `Device`."""
        return SimpleNamespace(replay=work)

    def _mark(self, i: int) -> Any:
        if self._events is None:
            return time.perf_counter()
        with self.device._current():
            self.device.driver("cuEventRecord", self._events[i], self.device._stream)
        return self._events[i]


def machine() -> dict[str, Any]:
    """Machine and versions behind the figures."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        gpu = f"unknown ({error})"
    return {"gpu": gpu, "cpu": platform.processor() or platform.machine(), "n_cpu": os.cpu_count(),
            "python": platform.python_version(), "versions": versions}


def batch(scenes: DrawnScenes, n_source: int) -> tuple[list[Any], list[Any], int]:
    """Images and centres of at least so many sources, the scenes over and over."""
    images, centers, total = [], [], 0
    while total < n_source:
        k = len(images) % len(scenes.centers)
        images.append(scenes.image[k])
        centers.append(scenes.centers[k])
        total += len(scenes.centers[k])
    return images, centers, total


def parity(on_gpu: Deblender, on_cpu: Deblender, scenes: DrawnScenes) -> dict[str, Any]:
    """How far the answers are from the CPU's, and whether the bits stay."""
    images, centers = list(scenes.image[:N_PARITY]), scenes.centers[:N_PARITY]
    variance = scenes.variance
    expected = on_cpu.deblend_batch(images, centers, variance=variance, psf="nominal", detail=False)
    result = on_gpu.deblend_batch(images, centers, variance=variance, psf="nominal", detail=False)
    again = on_gpu.deblend_batch(images, centers, variance=variance, psf="nominal", detail=False)
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = on_gpu.deblend_batch([images[k] for k in order], [centers[k] for k in order], variance=variance,
                                    psf="nominal", detail=False)
    rows = np.concatenate([np.arange(result.n_source)[result.sources(int(k))] for k in order])
    known = np.isfinite(expected.flux) & np.isfinite(result.flux)
    off = np.abs(result.flux - expected.flux)[known] / expected.flux_err[known]
    return {
        "n_source": result.n_source, "same_known": bool((np.isfinite(result.flux) == np.isfinite(expected.flux)).all()),
        "flux_off_in_errors": {"median": float(np.median(off)), "p99": float(np.quantile(off, 0.99)),
                               "max": float(off.max()), "above_1e-3": float((off > 1e-3).mean())},
        "flags_equal": float((result.flags == expected.flags).mean()),
        "same_bits_again": same_bits(result, again, slice(None)),
        "same_bits_in_another_batch": same_bits(shuffled, result, rows),
    }


def same_bits(a: DeblendResult, b: DeblendResult, rows: Any) -> bool:
    """Whether a's rows are those of b."""
    return all(getattr(a, name).tobytes() == np.ascontiguousarray(getattr(b, name)[rows]).tobytes()
               for name in ("flux", "flux_err", "latent", "flags", "coefficients"))


def ceilings(device: Device) -> dict[str, float]:
    """Bytes a second that a large copy moves, read and written."""
    source, target = (device.empty(COPIED, np.uint8) for _ in range(2))
    device.clear(source)
    seconds = median_seconds(device, lambda: device.copy(source, target))
    return {"copy_gbps": 2 * COPIED / seconds / 1e9}


def median_seconds(device: Device, work: Callable[[], None], n: int = 7) -> float:
    """Median time of some work, after a first time that does not count."""
    times = []
    for _ in range(n + 1):
        device.synchronize()
        start = time.perf_counter()
        work()
        device.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


@contextmanager
def timed(deblender: Deblender) -> Iterator[Timed]:
    """Time every kernel of a deblender's first stream."""
    assert deblender.pool is not None
    with deblender.pool.stream() as work:
        watch: Any = Timed(work.device)
        slow = DeviceStream(DeviceModel(CudaRuntime(deblender.bundle, watch)))
    kept, deblender.pool = deblender.pool, DevicePool([slow])
    try:
        yield watch
    finally:
        deblender.pool = kept


def kernels(deblender: Deblender, scenes: DrawnScenes, n_source: int) -> list[dict[str, Any]]:
    """Time of every kernel in one batch, launch by launch."""
    images, centers, total = batch(scenes, n_source)
    with timed(deblender) as watch:
        deblender.deblend_batch(images, centers, variance=scenes.variance, psf="nominal", detail=False)
    every = sum(watch.seconds.values())
    return [{"kernel": name, "launches": watch.count[name], "seconds": seconds, "share": seconds / every,
             "us_per_source": 1e6 * seconds / total}
            for name, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])]


def host(deblender: Deblender, scenes: DrawnScenes, n_source: int) -> str:
    """Profile one thread of the host in a batch, waiting for the device included."""
    images, centers, _ = batch(scenes, n_source)
    deblender.deblend_batch(images, centers, variance=scenes.variance, psf="nominal", detail=False)
    profile = cProfile.Profile()
    profile.runcall(deblender.deblend_batch, images, centers, variance=scenes.variance, psf="nominal", detail=False)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(30)
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def throughput(deblender: Deblender, scenes: DrawnScenes, sizes: list[int], limit: float,
               **options: Any) -> Iterator[dict[str, Any]]:
    """Sources per second against their number."""
    rate = 0.0
    for size in sizes:
        images, centers, total = batch(scenes, size)
        if rate and total / rate > limit:
            yield {"n_source": total, "left_out": f"would take {total / rate:.0f} s"}
            continue
        times: list[float] = []
        while not times or (len(times) < 3 and sum(times) + min(times) < limit):
            start = time.perf_counter()
            result = deblender.deblend_batch(images, centers, variance=scenes.variance, psf="nominal", detail=False,
                                             **options)
            times.append(time.perf_counter() - start)
        rate = total / min(times)
        yield {"n_source": result.n_source, "seconds": times, "sources_per_second": total / np.median(times)}


def latency(deblender: Deblender, scenes: DrawnScenes) -> dict[str, float]:
    """Time of single scenes, milliseconds."""
    times = []
    for k in range(N_LATENCY):
        i = k % len(scenes.centers)
        start = time.perf_counter()
        deblender.deblend_batch(scenes.image[i], scenes.centers[i], variance=scenes.variance, psf="nominal",
                                detail=False)
        times.append(1e3 * (time.perf_counter() - start))
    times = times[len(times) // 20 :]
    return {"p50": float(np.quantile(times, 0.5)), "p99": float(np.quantile(times, 0.99))}


def measure(report: Report, on_gpu: Deblender, on_cpu: Deblender, scenes: DrawnScenes,
            arguments: argparse.Namespace, open_pool: Callable[[int], DevicePool]) -> None:
    """All sections, the short ones first; `open_pool` makes a pool of so many streams."""
    pool = on_gpu.pool
    assert pool is not None

    def copying() -> dict[str, float]:
        with pool.stream() as work:
            return ceilings(work.device)

    threads = {"n_threads": arguments.threads}
    report.section("parity", lambda: parity(on_gpu, on_cpu, scenes))
    print(json.dumps(report.figures.get("parity"), indent=1), flush=True)
    report.section("ceilings", copying)
    report.section("latency", lambda: latency(on_gpu, scenes))
    report.section("kernels", lambda: kernels(on_gpu, scenes, arguments.kernel_sources))
    report.section("host", lambda: host(on_gpu, scenes, arguments.kernel_sources))
    gbps = report.figures.get("ceilings", {"copy_gbps": 3000.0})["copy_gbps"]
    report.section("roofline", lambda: page(on_gpu.bundle, 67.0, gbps, 15.0))
    report.section("descent alone", lambda: descent_alone.compare(on_gpu, scenes, arguments.descent_sizes,
                                                                  arguments.torch))
    report.section("throughput gpu", lambda: throughput(on_gpu, scenes, arguments.sizes, arguments.seconds, **threads))
    for n_stream in arguments.streams:
        report.section(f"throughput gpu, {n_stream} streams", lambda n=n_stream: throughput(
            Deblender(on_gpu.bundle, on_gpu.runtime, open_pool(n)), scenes, arguments.sizes, arguments.seconds,
            **threads))
    report.section("throughput cpu", lambda: throughput(on_cpu, scenes, arguments.sizes[:3], arguments.seconds / 3,
                                                        **threads))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="lsst")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000, 100_000],
                        help="of the throughput; a million takes 100 GB of the host's memory")
    parser.add_argument("--kernel-sources", type=int, default=4096)
    parser.add_argument("--descent-sizes", type=int, nargs="*", default=[128, 1024, 4096, 16_384])
    parser.add_argument("--torch", nargs="*", default=["eager", "graph"], choices=list(descent_alone.VARIANTS))
    parser.add_argument("--streams", type=int, nargs="*", default=[8], help="other numbers of streams to try")
    parser.add_argument("--seconds", type=float, default=90.0, help="longest run of one size")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(argv)


def main() -> int:
    """Measure, print and write; returns how many sections failed."""
    arguments = parse()
    report = Report(arguments.out)
    report.section("machine", machine)
    on_cpu = Deblender.load(arguments.bundle)
    scenes = draw_scenes(on_cpu, N_POOL)
    start = time.perf_counter()
    on_gpu = Deblender.load(arguments.bundle, device="cuda")
    on_gpu.warmup()
    report.figures["seconds_to_first_result"] = time.perf_counter() - start
    measure(report, on_gpu, on_cpu, scenes, arguments, lambda n: DevicePool.open(on_gpu.bundle, open_device, n))
    print((arguments.out / "gpu.md").read_text())
    return len(report.failed)


if __name__ == "__main__":
    sys.exit(main())
