"""Fits of `perf.studies.cpu.source_number` and the simulation of `perf.studies.scaling`."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from perf.studies.cpu import source_number
from perf.studies.scaling import page, simulation

WORK = simulation.Workload("work", 400, 50.0, 0.02, 1e6)
MACHINE = simulation.Machine(2, 8, start=1.0)


def test_exponent_of_a_power_law():
    n = np.array([10.0, 100.0, 1000.0])
    slope, error = source_number.exponent(n, 0.3 * n**1.25)
    assert slope == pytest.approx(1.25)
    assert error == pytest.approx(0.0, abs=1e-12)
    assert source_number.exponent(n, 0.3 * n**1.25 * np.array([1.0, 2.0, 1.0]))[1] > 0.1
    assert math.isnan(source_number.exponent(n[:2], n[:2])[1])


def test_efficiency_of_threads():
    alone = {"n_source": 100, "wall": 10.0, "cpu": 10.0, "threads": 1}
    found = source_number.efficiency(alone, {"n_source": 100, "wall": 6.25, "cpu": 11.0, "threads": 2})
    assert found["efficiency"] == pytest.approx(0.8)
    assert found["work"] == pytest.approx(1.1)
    assert (found["rate_alone"], found["rate"]) == (10.0, 16.0)


def test_side_keeps_the_density():
    for n in (100, 10_000):
        side = source_number.side_of(n) * 0.2 / 60
        assert n / side**2 == pytest.approx(source_number.DENSITY, rel=0.02)


def test_shards_keep_the_work():
    seconds = simulation.shard_seconds(WORK, np.random.default_rng(0))
    assert seconds.sum() == pytest.approx(WORK.n_source * WORK.seconds)
    assert seconds.min() > 0
    assert seconds.std() > 0.2 * seconds.mean()


@pytest.mark.parametrize("ahead", [False, True])
def test_simulation_conserves_work(ahead):
    fast = dataclasses.replace(MACHINE, slow_factor=1.0)
    run = simulation.simulate(WORK, fast, ahead=ahead)
    total = WORK.n_source * WORK.seconds
    assert run.done == WORK.n_shard
    assert run.busy == pytest.approx(total)
    transfer = (WORK.bytes_in + simulation.RESULT_BYTES * WORK.per_shard) / fast.bandwidth
    largest = float(simulation.shard_seconds(WORK, np.random.default_rng(simulation.SEED)).max()) + transfer
    least = fast.start + (total + WORK.n_shard * transfer) / fast.n_worker
    assert run.finish >= least - 1e-9
    if not ahead:  # Graham's bound on what taking the next shard when free can lose
        assert run.finish <= least + largest + 1e-9
    assert run.efficiency == pytest.approx(total / (fast.n_worker * run.finish))


def test_simulation_is_the_same_again_and_slow_cores_cost():
    assert simulation.simulate(WORK, MACHINE) == simulation.simulate(WORK, MACHINE)
    slow = dataclasses.replace(MACHINE, slow_fraction=0.25, slow_factor=3.0)
    free, ahead = (simulation.simulate(WORK, slow, ahead=a) for a in (False, True))
    assert free.finish > simulation.simulate(WORK, MACHINE).finish
    assert ahead.finish > 1.5 * free.finish
    assert free.busy > WORK.n_source * WORK.seconds


def test_more_cores_than_shards_do_not_help():
    few = dataclasses.replace(WORK, n_shard=4)
    machines = [simulation.Machine(n, 8, slow_fraction=0.0) for n in (1, 4)]
    runs = [simulation.simulate(few, m) for m in machines]
    assert runs[0].finish == pytest.approx(runs[1].finish, rel=0.01)
    assert runs[1].limit == "the largest shard"
    assert runs[1].efficiency < 0.2


def test_what_arrives_later_is_not_begun_before():
    two = dataclasses.replace(WORK, n_shard=16, arrivals=(0.0, 100.0))
    run = simulation.simulate(two, dataclasses.replace(MACHINE, slow_fraction=0.0))
    assert run.finish > 100.0
    assert run.latest == pytest.approx(run.finish - 100.0)


def test_slow_storage_limits():
    starved = dataclasses.replace(MACHINE, node_bandwidth=1e5)
    assert simulation.simulate(WORK, starved).limit == "reading and writing"


def test_page_says_what_is_measured(tmp_path):
    jobs = [dataclasses.replace(WORK, arrivals=(0.0, 39.0)), dataclasses.replace(WORK, name="all")]
    runs = {job.name: [(MACHINE, simulation.simulate(job, MACHINE), simulation.simulate(job, MACHINE, ahead=True))]
            for job in jobs}
    (tmp_path / "cpu.json").write_text(json.dumps({"summary": {"ms_per_source": 20.0}}))
    assert simulation.measured(tmp_path / "cpu.json") == {"ms_per_source": 20.0}
    assert simulation.measured(tmp_path / "none.json") == {}
    inputs = {"ms_per_source": (20.0, "measured"), "ms_per_source_one_band": (5.0, "a placeholder, not measured"),
              "cold_start_seconds": (1.0, "given")}
    text = page.markdown("python -m perf.studies.scaling", inputs, jobs, runs, "lsst", 60.0)
    assert "in micro-batches [ms] | 5.00 | a placeholder, not measured |" in text
    assert "no GPU has run this" in text
    assert "| all | 2e+04 | 400 | 2 |" in text
    assert "keep 5.13 cores busy" in text


def test_jobs_have_the_published_sizes():
    jobs = {job.name: job for job in simulation.workloads(20.0, 5.0)}
    assert jobs["DR1 of the sizing model"].n_source == pytest.approx(2.75e10)
    assert jobs["DR1 at DP1's density"].n_source == pytest.approx(2.76e9)
    assert jobs["all sources of two visits, one band"].n_source == pytest.approx(6.0e6, rel=0.01)
    assert jobs["a visit's alerts, two visits"].n_source == pytest.approx(2e4)
    assert jobs["a coadd patch, six bands"].seconds == 0.02
