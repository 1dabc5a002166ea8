"""The gate fails on planted defects, and on nothing else.

The engines are stand-ins of a few lines, each in a tree of its own. They run through the same processes as the real
engine.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from perf import __main__ as command
from perf.gate import compare, measure, schema, verdict

ENGINE = """
import dataclasses, time
import numpy as np

@dataclasses.dataclass
class Result:
    bands: tuple
    flux: object
    flux_err: object
    flags: object
    objective: object
    images: list

    def model(self, k):
        return self.images[k]

class Deblender:
    @classmethod
    def load(cls):
        return cls()

    def warmup(self):
        pass

    def deblend_batch(self, cutouts, centers, variance, psf, bands, n_iteration=12, memory_limit=None):
        # light within 6 pixels, wrong by the planted factor; a stated amount of work
        until = time.process_time() + {burn}
        while time.process_time() < until:
            pass
        time.sleep({sleep})
        n_source = sum(map(len, centers))
        flux = []
        for image, places in zip(cutouts, centers):
            y, x = np.indices(image.shape[1:])
            for cx, cy in places:
                flux.append(image[:, (x - cx) ** 2 + (y - cy) ** 2 < 36].sum(1))
        flux = {factor} * np.array(flux)
        flags, objective = np.zeros(n_source, int), np.full(len(cutouts), {objective})
        return Result(tuple(bands), flux, 0.1 * np.abs(flux), flags, objective, list(cutouts))
"""
FLAGS = "SUSPECT = 1792\n"


def tree(folder, *, burn=0.01, sleep=0.0, factor=1.0, objective=100.0, broken=""):
    (folder / "engine").mkdir(parents=True)
    text = ENGINE.replace("{burn}", str(burn)).replace("{sleep}", str(sleep)).replace("{factor}", str(factor))
    (folder / "engine" / "__init__.py").write_text(broken + text.replace("{objective}", str(objective)))
    (folder / "engine" / "flags.py").write_text(FLAGS)
    return str(folder)


def run(base, candidate, *more):
    return command.main(["compare", base, candidate, "--case", "single_stream", *more])


@pytest.fixture
def base(tmp_path):
    return tree(tmp_path / "base")


@pytest.mark.parametrize("slow", [{"burn": 0.013}, {"sleep": 0.01}])  # wall time of a busy machine needs more
def test_a_slowdown_of_30_per_cent_fails(base, tmp_path, capsys, slow):
    out = tmp_path / "out.json"
    slower = tree(tmp_path / "slow", **slow)
    # other work on the machine widens the band until it decides nothing; then more pairs are taken
    assert any(run(base, slower, "--json", str(out), "--pairs", str(pairs)) == 1 for pairs in (14, 20, 28))
    record = schema.read(out)
    clock = "cpu" if "burn" in slow else "wall"
    assert any(f"single_stream: {clock}" in text for text in record["failed"])
    assert record["cases"]["single_stream"]["ratio"][clock]["median"] > 1.1
    assert "FAILED" in capsys.readouterr().out


def test_a_slowdown_that_is_allowed_passes(base, tmp_path):
    assert run(base, tree(tmp_path / "slow", burn=0.013), "--pairs", "3", "--slower", "150") == 0


@pytest.mark.parametrize(("planted", "name"), [({"factor": 1.2}, "flux_error_r"), ({"objective": 102.0}, "objective"),
                                               ({"factor": "np.nan"}, "failed")])
def test_worse_accuracy_fails(base, tmp_path, capsys, planted, name):
    assert run(base, tree(tmp_path / "worse", **planted), "--pairs", "1") == 1
    assert f"FAILED single_stream: {name}" in capsys.readouterr().out


def test_a_version_against_itself_passes_and_few_pairs_decide_nothing(base, capsys):
    assert run(base, base, "--pairs", "2", "--slower", "0") == 0
    said = capsys.readouterr().out
    assert "results are the same to the bit" in said
    assert "FAILED" not in said


def test_a_version_that_does_not_start_is_an_error_of_its_own(base, tmp_path, capsys):
    broken = tree(tmp_path / "broken", broken="raise RuntimeError('planted')\n")
    assert run(base, broken) == 2
    assert "planted" in capsys.readouterr().err
    assert run(base, str(tmp_path / "nothing")) == 2


def test_a_stored_record_compares_without_times(base, tmp_path, capsys):
    stored = tmp_path / "stored.json"
    assert command.main(["release", "--tree", base, "--json", str(stored)]) == 0
    assert run(str(stored), tree(tmp_path / "slow", burn=0.1)) == 0
    assert run(str(stored), tree(tmp_path / "worse", factor=1.2)) == 1
    record = json.loads(stored.read_text())
    record["cases"]["single_stream"]["inputs_sha256"] = "0" * 64
    stored.write_text(json.dumps(record))
    capsys.readouterr()
    assert run(str(stored), base) == 2
    assert "other inputs" in capsys.readouterr().err


def test_counts_are_judged_where_nothing_is_timed():
    record = schema.read(compare.RELEASE)
    case = record["cases"]["crowded"]
    more = copy.deepcopy(case["candidate"])
    more["counts"]["multiply_adds"] = int(1.2 * more["counts"]["multiply_adds"])
    assert len(list(verdict.worse(case["candidate"], more, counts=True))) == 1
    assert not list(verdict.worse(case["candidate"], more, counts=False))
    assert not list(verdict.worse(case["candidate"], case["candidate"], counts=True))


@pytest.mark.skipif(not (compare.ROOT / ".git").exists(), reason="a copy of the tree, which has no revisions")
def test_revisions_are_exported(tmp_path):
    with compare.tree("HEAD") as (path, source):
        assert (path / "engine" / "deblender.py").exists()
        assert len(source["sha256"]) == 64
    with pytest.raises(measure.Failed, match="neither"), compare.tree("no-such-revision"):
        pass


def noisy(rng, n):
    """Times of runs on a busy machine: 20% of scatter, one in ten much longer, and a slow drift."""
    scatter = np.exp(0.2 * rng.standard_normal(n) + 0.3 * np.linspace(0, rng.standard_normal(), n))
    return scatter * np.where(rng.random(n) < 0.1, rng.uniform(1.5, 5.0, n), 1.0)


def verdicts(true_ratio, n_trial, pairs=measure.PAIRS):
    rng = np.random.default_rng(17)
    found = []
    for _ in range(n_trial):
        times = noisy(rng, 2 * pairs).reshape(pairs, 2)
        times[1::2] = times[1::2, ::-1]  # ABBA
        band = measure.band(times[:, 1] * true_ratio / times[:, 0])
        found.append(verdict.speed(vars(band), 0.05))
    return found


def test_noise_alone_fails_less_than_once_in_a_hundred():
    # a whole comparison: eight cases, two clocks, any of which may fail it
    failed = np.array(verdicts(1.0, 16 * 1000)) == "slower"
    assert failed.reshape(1000, 16).any(1).mean() < 0.01


def test_enough_pairs_find_30_per_cent_in_that_noise():
    assert np.mean(np.array(verdicts(1.3, 200, pairs=100)) == "slower") > 0.8
