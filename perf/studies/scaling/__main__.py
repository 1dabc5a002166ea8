"""From one core to a survey: a roofline on paper, and a simulation of 1, 10 and 100 nodes.

    python -m perf.studies.scaling [--ms 40] [--nodes 1 10 100] [--cores 64]      # writes perf/results/scaling.md

Only one core of one machine is measured: the processor time per source and the start of a process. Both are read from
``perf/results/cpu.json``, else from options or placeholders, and the page says which. Everything else is a model, whose
inputs are on the page. No cluster and no GPU has run.

`simulation.simulate` hands shards of the sky, which share nothing, to cores. A core reads a shard, computes, and
writes. Times of blends are heavy-tailed (`simulation.blend_moments`), densities vary from shard to shard, and some
cores are slow throughout. A core takes the next shard when it is free. *Dealt ahead* means a fixed list of shards for
every core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf import study
from perf.report import RESULTS
from perf.studies.scaling import page, simulation


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, and write the page."""
    parser = study.parser("perf.studies.scaling", __doc__)
    parser.add_argument("--ms", type=float, help="processor ms per source in six bands; default: cpu.json")
    parser.add_argument("--one-band-ms", type=float, help="the same in one band")
    parser.add_argument("--start", type=float, help="s from nothing to the first result; default: cpu.json")
    parser.add_argument("--cores", type=int, default=simulation.Machine(1).n_core, help="of a node")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(simulation.NODES))
    parser.add_argument("--node-bandwidth", type=float, default=simulation.Machine(1).node_bandwidth, help="byte/s")
    parser.add_argument("--shared-bandwidth", type=float, default=simulation.Machine(1).shared_bandwidth, help="byte/s")
    parser.add_argument("--figures", type=Path, default=RESULTS / "cpu.json", help="JSON file of perf.studies.cpu")
    args = parser.parse_args(argv)
    stored = simulation.measured(args.figures)
    inputs: dict[str, tuple[float, str]] = {}
    for key, asked, placeholder in (("ms_per_source", args.ms, simulation.PLACEHOLDER_MS),
                                    ("ms_per_source_one_band", args.one_band_ms, simulation.PLACEHOLDER_ONE_BAND_MS),
                                    ("cold_start_seconds", args.start, simulation.PLACEHOLDER_START)):
        if asked is not None:
            inputs[key] = asked, "given on the command line"
        elif stored.get(key):
            inputs[key] = stored[key], "measured, `perf/results/cpu.md`"
        else:
            inputs[key] = placeholder, "a placeholder, not measured"
    start = inputs["cold_start_seconds"][0]
    machines = [simulation.Machine(n, args.cores, start, args.node_bandwidth, args.shared_bandwidth)
                for n in args.nodes]
    jobs = simulation.workloads(inputs["ms_per_source"][0], inputs["ms_per_source_one_band"][0])
    runs: dict[str, Any] = {
        job.name: [(m, simulation.simulate(job, m), simulation.simulate(job, m, ahead=True)) for m in machines]
        for job in jobs}
    text = page.markdown(study.command(parser, args), inputs, jobs, runs, args.bundle, simulation.matmul_gflops())
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scaling.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
