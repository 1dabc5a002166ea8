"""The page of `perf.studies.scaling`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deblendrt.engine.model.bundle import load_bundle
from perf import report
from perf.gpu import roofline
from perf.studies.scaling.simulation import (
    DENSITY_SCATTER,
    LARGEST_BLEND,
    NUMBER_SOURCES,
    PARETO,
    PATCH_PARTS,
    PIXEL_BYTES,
    RELEASE_HOURS,
    RESULT_BYTES,
    VISIT_INTERVAL,
    Machine,
    Run,
    Workload,
)

MEAN_ITERATIONS = 10.5  # mean for a source in 60 test scenes: 8, and more for blends that still move
CORES = ((96.0, 6.0, "32 operations a cycle (two 256-bit multiply-adds) at 3 GHz"),
         (192.0, 6.0, "64 operations a cycle (two 512-bit multiply-adds) at 3 GHz"))  # GFLOP/s, GB/s of a core
GPU = (67.0, 3000.0)  # TFLOP/s in float32 and GB/s of an H100, as in perf/results/gpu.md
INPUT_NAMES = {"ms_per_source": "processor time per source, six bands [ms]",
         "ms_per_source_one_band": "processor time per source, one band, alert cutouts in micro-batches [ms]",
         "cold_start_seconds": "start of a process to its first result [s]"}


def duration(seconds: float) -> str:
    """A time in a suitable unit."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{report.number(seconds / size)} {unit}"
    return f"{report.number(seconds)} s"


def floor(bundle_name: str) -> tuple[float, float]:
    """Operations and bytes of the descent of a source, as `perf.gpu.roofline` counts its kernels."""
    rows = list(roofline.stages(load_bundle(bundle_name)))
    n = MEAN_ITERATIONS
    return n * sum(r.count * r.flop for r in rows), n * sum(r.count * r.byte for r in rows)


def bound_per_second(bundle_name: str, tflops: float, gbps: float) -> float:
    """Bound on the sources per second of a device, kernel by kernel."""
    rows = list(roofline.stages(load_bundle(bundle_name)))
    seconds = sum(max(r.count * r.flop / tflops / 1e12, r.count * r.byte / gbps / 1e9) for r in rows)
    return 1.0 / (MEAN_ITERATIONS * seconds)


def markdown(command: str, inputs: Mapping[str, tuple[float, str]], jobs: Sequence[Workload],
             runs: Mapping[str, Sequence[tuple[Machine, Run, Run]]], bundle: str, gflops: float) -> str:
    """The page.

    Parameters
    ----------
    command : str
    inputs : mapping of str to (float, str)
        Figures of one core, and their origin.
    jobs : sequence of Workload
    runs : mapping of str to sequence of (Machine, Run, Run)
        For each workload: the run with shards taken when a core is free, and the run with shards dealt ahead.
    bundle : str
    gflops : float
        Rate of float32 products on a core of this machine.
    """
    machine = runs[jobs[0].name][0][0]
    parts = ["# From one core to a survey", f"Made by `{command}`. **Only the figures of one core are measured; "
             "the rest is a model.** No cluster and no GPU has run.",
             "## Inputs", report.markdown_table(["measured on one core", "value", "where from"], [
                 [INPUT_NAMES[key], report.number(value), source] for key, (value, source) in inputs.items()]),
             *_assumptions(machine), "Numbers for Rubin, with their sources:",
             "\n".join(f"- {text}" for text in NUMBER_SOURCES),
             "## Simulated", *_simulated(jobs, runs), "## Keeping up with the telescope", *_pace(jobs),
             "## Roofline on paper", *_roofline(inputs["ms_per_source"][0], bundle, gflops, jobs),
             "## Not in the model", "Lost nodes and retries, detection and everything else that a pipeline does, "
             "queues of a batch system, crowding: a source is taken to cost the same in the Galactic plane, where "
             "blends are larger, as in the test scenes. Cores are taken to be as fast when all of a node's are at work "
             "as one alone is; two threads on two cores are what has been measured (`perf/results/cpu.md`)."]
    return "\n\n".join(parts) + "\n"


def _assumptions(machine: Machine) -> list[str]:
    return ["Assumed:", "\n".join([
        f"- {machine.n_core} cores a node, a process on each, which starts once; {100 * machine.slow_fraction:g}% of "
        f"the cores, at random, take {machine.slow_factor:g} times as long throughout.",
        f"- {machine.node_bandwidth / 1e9:g} GB/s between a node and the storage, {machine.shared_bandwidth / 1e9:g} "
        "GB/s of the storage for all; a core reads its shard, computes, writes, one after the other.",
        f"- {PIXEL_BYTES:g} bytes a pixel and band read (image, variance, mask), {RESULT_BYTES / 1e3:g} kB a source "
        "written.",
        f"- A CCD and a patch are divided into {PATCH_PARTS} parts, as the engine does; the shards of a data release "
        "are whole patches, those of alerts all the cutouts of a CCD.",
        f"- The time of a blend has a Pareto law of index {PARETO:g}, cut at {LARGEST_BLEND:g} times the least; the "
        f"density of sources scatters by {DENSITY_SCATTER:g} in its logarithm from shard to shard, beside Poisson's."])]


def _simulated(jobs: Sequence[Workload], runs: Mapping[str, Sequence[tuple[Machine, Run, Run]]]) -> list[str]:
    rows = []
    for job in jobs:
        for machine, free, ahead in runs[job.name]:
            once = len(job.arrivals) == 1
            rows.append([job.name, f"{job.n_source:.3g}", str(job.n_shard), str(machine.n_node), duration(free.latest),
                         report.percent(free.efficiency) if once else "–", duration(ahead.latest),
                         f"{machine.n_worker * free.finish / 3600:.3g}", free.limit])
    least = min(machine.n_worker * free.finish for machine, free, _ in runs[jobs[-1].name])
    return [report.markdown_table(["job", "sources", "shards", "nodes", "time to finish", "efficiency",
                                   "shards dealt ahead", "core-hours held", "what limits"], rows),
            "The time to finish counts from the arrival of the second visit, for the visits. The efficiency is the "
            "computing time of cores that are not slow, over the core time held until the last shard is done; it is "
            "not given for the visits, whose cores wait for the telescope. Dealt ahead is the time with a fixed list "
            "of shards for every core, where a slow core finishes its list alone. The limit is the largest bound on "
            "the time for the shards of one arrival: all computing over all cores, the largest shard, reading and "
            "writing, or the start.",
            f"{jobs[-1].name}: at least {100 * least / 3600 / RELEASE_HOURS:.2g}% of the {RELEASE_HOURS:.2g} "
            "core-hours that DMTN-135 plans for the whole release."]


def _pace(jobs: Sequence[Workload]) -> list[str]:
    lines = []
    for job in jobs:
        if len(job.arrivals) > 1:
            each = job.n_source / len(job.arrivals)
            lines.append(f"- {job.name}: {each:.3g} sources a visit at {1e3 * job.seconds:.3g} ms keep "
                         f"{each * job.seconds / VISIT_INTERVAL:.3g} cores busy, a visit every {VISIT_INTERVAL:g} s.")
    return ["\n".join(lines)]


def _roofline(ms: float, bundle: str, gflops: float, jobs: Sequence[Workload]) -> list[str]:
    flop, byte = floor(bundle)
    rows = [[words, f"{peak:g}", f"{flop / peak / 1e6:.1f}", f"{byte / band / 1e6:.1f}",
             report.percent(flop / peak / 1e6 / ms)] for peak, band, words in CORES]
    rows.append(["this core's float32 products of NumPy, measured now", f"{gflops:.0f}", f"{flop / gflops / 1e6:.1f}",
                 "–", report.percent(flop / gflops / 1e6 / ms)])
    rate = bound_per_second(bundle, *GPU)
    survey = jobs[-1]
    return [f"The descent of a source, {MEAN_ITERATIONS:g} iterations as a device takes them (`perf.gpu.roofline`): "
            f"{flop / 1e9:.2f} GFLOP, {byte / 1e6:.0f} MB if every array of every step goes through memory once (on a "
            "CPU most stay in caches). Start, photometry and errors are not counted; the measured time has them.",
            report.markdown_table(["a core", "GFLOP/s", "arithmetic [ms per source]",
                                   f"memory at {CORES[0][1]:g} GB/s a core [ms]", "of the measured time"], rows),
            f"On paper alone, **no GPU has run this**: an H100's {GPU[0]:g} TFLOP/s and {GPU[1]:g} GB/s bound the "
            f"descent at {rate:,.0f} sources a second, kernel by kernel (`perf/results/gpu.md`); {survey.name}, "
            f"{survey.n_source:.3g} sources, would take ten such cards {duration(survey.n_source / rate / 10)} at that "
            "bound, which no engine reaches, host's work and reading not included."]
