"""Bands of ratios, the order of runs, timers that leave functions as they were, records."""

from __future__ import annotations

import copy
import importlib
import json
import sys
import types

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from deblendrt.engine.compute import drawing
from deblendrt.engine.compute.matmul import matmul
from deblendrt.engine.solve import descent
from perf.gate import cases, compare, measure, runs, schema, stages
from perf.gate.instructions import SOFTWARE, TASK_CLOCK, Counter


def test_a_band_holds_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(5)
    bands = [measure.band(rng.lognormal(0.0, 0.5, measure.PAIRS)) for _ in range(2000)]
    inside = np.mean([b.low <= 1 <= b.high for b in bands])
    assert bands[0].confidence == pytest.approx(0.9982, abs=1e-4)
    assert inside == pytest.approx(bands[0].confidence, abs=0.004)


def test_a_band_of_few_pairs_says_that_it_is_not_sure():
    assert measure.band([1.0, 1.2, 1.1]) == measure.Band(1.1, 1.0, 1.2, 0.75, 3)
    assert measure.band([1.5]).confidence == 0.0
    assert measure.band(range(1, 11)).confidence >= measure.CONFIDENCE  # 10 pairs are the fewest that can fail


def test_the_order_of_a_pair_alternates():
    order = []
    measure.interleave(lambda: order.append("A") or {}, lambda: order.append("B") or {}, 4)
    assert "".join(order) == "ABBAABBA"


def test_timers_find_their_functions_and_leave_no_trace():
    before = {name: stages._find(name) for names in stages.STAGES.values() for name in names}
    held = descent.joint_step
    with stages.Probe().installed() as probe:
        assert descent.joint_step is not held  # a name that another module imported
        late = types.ModuleType("deblendrt.engine.late")
        late.render = drawing.render  # as a module would hold it that is imported meanwhile
        sys.modules[late.__name__] = late
    del sys.modules[late.__name__]
    assert descent.joint_step is held
    assert late.render is drawing.render
    assert {name: stages._find(name) for name in before} == before
    assert probe.skipped == sorted(name for name, found in before.items() if found is None)


def test_multiply_adds_are_counted_and_generators_timed():
    a, b = np.ones((2, 8, 5), np.float32), np.ones((2, 5, 3), np.float32)
    with stages.Probe().installed() as probe:
        importlib.import_module("deblendrt.engine.compute.matmul").matmul(a, b)
        drawing.product(np.ones((3, 2, 5), np.float32), b)  # padded to 8 rows
    assert probe.counts == {"multiply_adds": 2 * (2 * 8 * 5 * 3)}
    assert np.array_equal(matmul(a, b), a @ b)

    def numbers():
        yield from (sum(range(200_000)) and k for k in (1, 2))

    timed = probe._timed("render", numbers)
    assert list(timed()) == [1, 2]
    assert probe.seconds["render"] > 0


def test_a_stage_has_its_own_time_alone():
    probe = stages.Probe()

    def burn(n):
        return sum(range(n))

    inner = probe._timed("render", lambda: burn(3_000_000))
    outer = probe._timed("solve", lambda: (burn(30_000), inner())[1])
    outer()
    assert probe.seconds["render"] > 10 * probe.seconds["solve"] > 0


class Instant:
    """A deblender that takes a second of a made-up clock for each call."""

    def __init__(self):
        self.now, self.sizes = 0.0, []

    def deblend_batch(self, cutouts, **given):
        self.sizes.append(len(cutouts))
        self.now += 1.0

    def sleep(self, seconds):
        self.now += seconds


def test_latency_of_the_burst_counts_from_the_scheduled_arrival():
    case, engine = cases.CASES["burst"], Instant()
    scenes = [cases.alert_scene(3, 0)] * 100
    outcome = runs._burst(engine, scenes, case, lambda: engine.now, engine.sleep)
    due = cases.arrivals(100)
    # the first comes alone; while it is served all others arrive, and wait for two micro-batches
    assert engine.sizes == [1, 64, 35]
    assert outcome.latency[0] == pytest.approx(1.0)
    assert outcome.latency[-1] == pytest.approx(due[0] + 3.0 - due[-1])
    assert outcome.extra["cutouts_per_second"] == pytest.approx(100 / 3.0)


def test_a_counter_counts_or_says_why_not():
    counter = Counter(SOFTWARE, TASK_CLOCK)  # machines without counters of instructions have this one
    if counter.why:
        assert counter.read() is None
        return
    before = counter.read()
    sum(range(10**6))
    assert counter.read() > before
    counter.close()
    assert counter.read() is None


@pytest.fixture(scope="module")
def record():
    return schema.read(compare.RELEASE)


@pytest.mark.parametrize("spoil", [
    lambda r: r.pop("machine"), lambda r: r.update(surprise=1), lambda r: r["machine"].update(n_cpu="two"),
    lambda r: r["load"].update(before=[True]), lambda r: r.update(revision=2),
    lambda r: r["cases"]["burst"]["candidate"].update(objective=float("nan")),
    lambda r: r["cases"]["burst"]["candidate"]["counts"].update(calls_render=-1),
    lambda r: r["cases"]["burst"].pop("inputs_sha256")])
def test_the_schema_rejects(record, spoil):
    assert schema.check(record) is record
    spoiled = copy.deepcopy(record)
    spoil(spoiled)
    with pytest.raises(schema.SchemaError):
        schema.check(spoiled)


def test_the_schema_is_one():
    Draft202012Validator.check_schema(json.loads(schema.SCHEMA.read_text()))


def test_the_stored_record_is_of_the_frozen_inputs(record):
    assert {name: case["inputs_sha256"] for name, case in record["cases"].items()}.items() <= cases.DIGESTS.items()
