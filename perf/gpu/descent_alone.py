"""The descent alone, ours and PyTorch's, on the same GPU from the same starts, which are on it before the clock runs.

Scenes are `drawn_scenes`', their sources drawn without outskirts (by both); starts are the encoder's, made on the CPU.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deblendrt.engine.compute.cuda.buffers import Buffers
from deblendrt.engine.compute.cuda.streams import DeviceStream
from deblendrt.engine.compute.folded_basis import FoldedBasis
from deblendrt.engine.compute.problem import DoubleArray, Problem
from deblendrt.engine.deblender import Deblender
from deblendrt.engine.scene.scene import make_scenes
from deblendrt.engine.solve import constants, device_descent, objective
from deblendrt.engine.solve.start import build_problem, start_latents
from perf.gpu.drawn_scenes import DrawnScenes

N_ITERATION = constants.ITERATIONS["gauss_newton"]
TEMPERS = tuple(objective.temper(i, N_ITERATION) for i in range(N_ITERATION))
REPEATS = 5
VARIANTS: dict[str, dict[str, bool]] = {"eager": {}, "graph": {"recorded": True},
                                        "compile": {"compiled": True, "recorded": True}}


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a descent.

    Attributes
    ----------
    problem : Problem
    latent : float64 (n_source, n_latent)
    floor : float64 (n_source, n_band) [ln nJy]
    """

    problem: Problem
    latent: DoubleArray
    floor: DoubleArray

    @property
    def n_source(self) -> int:
        """Number of sources."""
        return len(self.latent)


def make_start(deblender: Deblender, images: Any, centers: Any, variance: Any) -> Start:
    """The problem of some scenes, without outskirts, and where its descent begins.

    Parameters
    ----------
    deblender : Deblender
        Its CPU part is used.
    images, centers, variance
        As for `Deblender.deblend_batch`.

    Returns
    -------
    Start
    """
    bundle = deblender.bundle
    scenes = make_scenes(images, centers, bundle_bands=bundle.bands, bundle_pixel_scale=bundle.pixel_scale,
                         window_half=deblender.window // 2, variance=variance)
    problem, _ = build_problem(scenes, without_outskirts(deblender.fold(None)), deblender.runtime, bundle,
                               center_sigma=0.2, robust=True)
    return Start(*start_latents(problem, "encoder"))


def without_outskirts(folded: FoldedBasis) -> FoldedBasis:
    """A folded basis that ends at its window, the only one."""
    return dataclasses.replace(folded, nested=(), outer=folded.outer[:, :, :0],
                               full_gram=folded.gram, full_window=folded.window)


def repeated(start: Start, n_source: int) -> Start:
    """Scenes of a start, over and over, until they have at least so many sources."""
    problem = start.problem
    n_scene = len(problem.data)
    per_scene = np.bincount(problem.scene, minlength=n_scene)
    first = np.cumsum([0, *per_scene])
    first_blend = np.cumsum([0, *(part.n_blend for part in problem.partition)])
    chosen: list[int] = []
    while per_scene[chosen].sum() < n_source:
        chosen.append(len(chosen) % n_scene)
    rows = np.concatenate([np.arange(first[k], first[k + 1]) for k in chosen])
    counts = per_scene[chosen]
    n_blend = np.diff(first_blend)[chosen]
    start_of = np.cumsum([0, *n_blend])
    blend = problem.blend[rows] + np.repeat(start_of[:-1] - first_blend[:-1][chosen], counts)

    def take(values: list[Any]) -> list[Any]:
        return [values[k] for k in chosen]

    by_source = {name: getattr(problem, name)[rows]
                 for name in ("corner", "offset0", "measured", "star", "extent", "smallest", "own")}
    by_scene = {name: take(getattr(problem, name)) for name in ("data", "weight", "partition", "area")}
    problem = dataclasses.replace(
        problem, **by_source, **by_scene, scene=np.repeat(np.arange(len(chosen)), counts), blend=blend,
        n_blend=int(start_of[-1]))
    return Start(problem, start.latent[rows], start.floor[rows])


def ours(stream: DeviceStream, start: Start, n_repeat: int) -> tuple[Buffers, dict[str, Any]]:
    """Time our engine's descent.

    Parameters
    ----------
    stream : DeviceStream
    start : Start
    n_repeat : int

    Returns
    -------
    buffers : Buffers
        As the last run left it.
    figures : dict
    """
    stream.clear()
    with stream.loaded(start.problem) as buffers:
        joint = buffers.joint(constants.MAX_DENSE, constants.RIM)

        def prepare() -> None:
            device_descent.start(buffers, start.latent, start.floor)

        def descend() -> None:
            buffers.run(TEMPERS, lambda: device_descent.queue_gauss_newton(buffers, joint, TEMPERS), joint)

        seconds = median_seconds(descend, stream.device.synchronize, n_repeat, prepare)
    figures: dict[str, Any] = {"engine": "deblendrt", "n_source": start.n_source, "seconds": seconds,
                               "sources_per_second": start.n_source / seconds}
    used = getattr(stream.device, "used", None)
    if used is not None:
        figures["peak_gb"] = used / 1e9  # nothing is freed on the way
    return buffers, figures


def torchs(start: Start, variant: str, n_repeat: int, device: str = "cuda") -> tuple[Any, dict[str, Any]]:
    """Time PyTorch's descent.

    Parameters
    ----------
    start : Start
    variant : str
        A key of `VARIANTS`.
    n_repeat : int
    device : str

    Returns
    -------
    place : torch_loop.Place
        End of the descent.
    figures : dict
    """
    import torch

    from perf.gpu.torch_loop import TorchDescent

    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    descent = TorchDescent(start.problem, start.latent, start.floor, list(TEMPERS), device, **VARIANTS[variant])
    prepared = time.perf_counter() - began
    seconds = median_seconds(descent.run, torch.cuda.synchronize if on_gpu else lambda: None, n_repeat)
    figures = {"engine": f"PyTorch {torch.__version__}, {variant}", "n_source": start.n_source, "seconds": seconds,
               "sources_per_second": start.n_source / seconds, "seconds_to_prepare": prepared}
    if on_gpu:
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return descent.run(), figures


def median_seconds(work: Callable[[], Any], synchronize: Callable[[], None], n_repeat: int,
                   prepare: Callable[[], None] = lambda: None) -> float:
    """Median time of some work, after two that do not count: the second may record what the first made ready."""
    times = []
    for _ in range(n_repeat + 2):
        prepare()
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def torch_missing() -> str | None:
    """Why PyTorch cannot be compared with here, or None if it can."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch is not installed ({error}): pip install torch"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU (a build without CUDA: {torch.version.cuda is None})"
    return None


def compare(deblender: Deblender, scenes: DrawnScenes, sizes: list[int],
            variants: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of figures: of our engine and of PyTorch's variants, at several numbers of sources.

    Parameters
    ----------
    deblender : Deblender
        On the GPU.
    scenes : DrawnScenes
        Repeated for larger sizes.
    sizes : list of int
        Sources.
    variants : list of str
        Keys of `VARIANTS`.
    """
    assert deblender.pool is not None
    missing = torch_missing()
    if missing:
        yield {"engine": "PyTorch", "left_out": missing}
    first = make_start(deblender, list(scenes.image), scenes.centers, scenes.variance)
    for size in sizes:
        start = repeated(first, size)
        with deblender.pool.stream() as work:
            descent, figures = ours(work, start, REPEATS)
            latent = descent.fetch(descent.state.latent)
            work.clear()
        del descent
        gc.collect()
        yield figures
        for variant in [] if missing else variants:
            try:
                place, figures = torchs(start, variant, REPEATS)
                off = np.abs(place.state.latent.cpu().numpy() - latent)[:, : start.problem.n_band]
                figures["log_flux_off"] = {"median": float(np.median(off)), "p99": float(np.quantile(off, 0.99))}
                del place
            except Exception as error:  # memory, a capture or a compilation: the rest is worth having
                figures = {"engine": f"PyTorch, {variant}", "n_source": start.n_source,
                           "left_out": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            gc.collect()
            yield figures
