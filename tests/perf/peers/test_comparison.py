"""`perf.peers` without a peer: the exchange, missing and made-up peers, environments, the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("galsim")

from deblendrt.training.simulation.blend_scenes import SimulatedScene
from perf import report, scenes
from perf.peers import comparison, environments, exchange, page, peer


def scene(n_source=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((2, 9, 11)).astype(np.float32)
    return exchange.GivenScene(("g", "r"), np.full((2, 5, 5), 1 / 25), image, np.ones_like(image),
                          rng.uniform(1, 8, (n_source, 2)))


def model(given, factor=1.0):
    n_source = len(given.centers)
    images = np.zeros((n_source, *given.image.shape), np.float32)
    return exchange.Model(factor * np.ones((n_source, 2)), images, np.array([0.5, 0.6]), np.array([0.1, 0.2]), 7, "")


def equal(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_scenes_and_models_survive_the_exchange(tmp_path):
    given = [scene(3), scene(1, seed=1)]
    exchange.write_scenes(tmp_path / "scenes.npz", given)
    read = exchange.read_scenes(tmp_path / "scenes.npz")
    assert all(equal(a, b) for a, b in zip(given, read, strict=True))
    models = [model(s, factor) for s, factor in zip(given, (1.0, np.nan), strict=True)]
    exchange.write_models(tmp_path / "models.npz", models)
    back = exchange.read_models(tmp_path / "models.npz")
    assert equal(back[0], models[0])
    assert np.isnan(back[1].flux).all()
    assert not equal(back[0], back[1])


def test_scenes_carry_no_truth(tmp_path):
    exchange.write_scenes(tmp_path / "scenes.npz", [scene()])
    with np.load(tmp_path / "scenes.npz", allow_pickle=False) as file:
        assert set(file) == {"bands", "psf", "n_scene", "image_0", "variance_0", "centers_0"}


def adapter(monkeypatch, tmp_path, text):
    """A peer named `fake` whose adapter is `text`, run by this interpreter."""
    folder = tmp_path / "root" / "perf" / "peers"
    folder.mkdir(parents=True)
    (folder / "fake.py").write_text(text)
    (folder / "exchange.py").write_text(Path(exchange.__file__).read_text())
    monkeypatch.setattr(peer, "ROOT", tmp_path / "root")
    return peer.Peer("fake", Path(sys.executable), tmp_path)


FAKE = """
import numpy as np
from perf.peers import exchange

def deblend(scene, factor):
    print("chatter")
    if len(scene.centers) > 2:
        raise RuntimeError("too many")
    n = len(scene.centers)
    return exchange.Model(np.full((n, 2), factor), np.zeros((n, *scene.image.shape), np.float32),
                          exchange.NO_TIME + 0.5, exchange.NO_TIME, 3, "")

exchange.serve(deblend, "1.2", "somehow", "its weights are random")
"""


def test_a_peer_answers_and_a_scene_that_it_can_not_do_is_a_result(monkeypatch, tmp_path):
    fake = adapter(monkeypatch, tmp_path, FAKE)
    assert (fake.version, fake.how, fake.time_only) == ("1.2", "somehow", "its weights are random")
    done, failed = fake.deblend([scene(2), scene(3)], factor=4.0)
    fake.close()
    np.testing.assert_array_equal(done.flux, np.full((2, 2), 4.0))
    np.testing.assert_array_equal(done.seconds, [0.5, 0.5])
    assert failed.error == "RuntimeError: too many"
    assert np.isnan(failed.flux).all()


def test_a_missing_peer_says_why(monkeypatch, tmp_path):
    with pytest.raises(peer.Missing, match="there is no "):
        peer.Peer("scarlet2", tmp_path / "python", tmp_path)
    with pytest.raises(peer.Missing, match="fake does not start: ModuleNotFoundError: No module named 'not_there'"):
        adapter(monkeypatch, tmp_path, "import not_there")


def test_a_peer_that_ends_says_why(monkeypatch, tmp_path):
    ends = FAKE.replace('raise RuntimeError("too many")', "sys.stdout.flush(), os._exit(9)")
    fake = adapter(monkeypatch, tmp_path, ends.replace("import numpy", "import os, sys\nimport numpy"))
    with pytest.raises(peer.Missing, match="chatter"):  # the last line of its output
        fake.deblend([scene(3)], factor=1.0)
    fake.close()


def test_a_peer_that_ends_without_a_word(monkeypatch, tmp_path):
    with pytest.raises(peer.Missing, match="it ended with status 9 and said nothing"):
        adapter(monkeypatch, tmp_path, "import os; os._exit(9)")


def test_an_environment_that_can_not_be_made_says_why_from_then_on(monkeypatch, tmp_path):
    said = []

    def run(command, **options):
        said.append(command)
        options["stdout"].write("Collecting sep\nERROR: No matching distribution found for sep\nand more\n")
        return subprocess.CompletedProcess(command, int("pip" in command))

    monkeypatch.setattr(environments.subprocess, "run", run)
    with pytest.raises(peer.Missing, match=r"^python failed: ERROR: No matching distribution found for sep$"):
        environments.make("sep", tmp_path)
    assert [command[1:3] for command in said] == [["-m", "venv"], ["-m", "pip"]]
    assert said[1][-1].endswith("sep.txt")
    with pytest.raises(peer.Missing, match="No matching distribution"):
        environments.interpreter(tmp_path, "sep")
    with pytest.raises(peer.Missing, match="has none for scarlet2"):
        environments.interpreter(tmp_path, "scarlet2")


def test_every_peer_has_an_adapter_and_its_requirements():
    for name in peer.PEERS:
        assert (Path(peer.__file__).parent / f"{name}.py").exists()
        assert (Path(peer.__file__).parent / "requirements" / f"{name}.txt").exists()
    assert {entry.deblender for entry in comparison.ENTRIES} == {comparison.OWN, *peer.PEERS}
    assert set(page.COLORS) == {entry.name for entry in comparison.ENTRIES} | {page.FLOOR}


def test_sources_of_peers_that_are_built(tmp_path):
    assert environments.sources([f"scarlet_lite={tmp_path}"]) == {"scarlet_lite": str(tmp_path)}
    assert environments.sources(["scarlet_lite=https://there"]) == {"scarlet_lite": "https://there"}
    with pytest.raises(ValueError, match="expected scarlet_lite, then ="):
        environments.sources(["sep=/a"])


class TestScenes(list):
    """Scenes of one band's noise, two sources each, as `run_peers` takes them."""

    __test__ = False
    bands, sky_sigma, counts_per_njy = scenes.RECIPE["survey"]["bands"], np.ones(6), np.full(6, 100.0)

    def __init__(self, n_scene):
        rng = np.random.default_rng(1)
        y, x = np.indices((61, 61))
        self.psf = np.full((6, 5, 5), 1 / 25)
        for _ in range(n_scene):
            centers = rng.uniform(20, 40, (2, 2))
            shape = np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18) / 56.5 for a, b in centers])
            flux = rng.uniform(2000, 9000, (2, 6))
            truth = (flux[:, :, None, None] * shape[:, None]).astype(np.float32)
            image = truth.sum(0) + rng.standard_normal((6, 61, 61)).astype(np.float32)
            self.append(SimulatedScene(image, np.ones_like(image), self.psf, centers, truth, flux))

    every, joined = scenes.SceneSet.every, scenes.SceneSet.joined

    def field(self, name, k):
        return getattr(self[k], name)


class Fake:
    """A deblender that returns the truth times a factor, and made-up times."""

    version, how = "1", "so"

    def __init__(self, tests, factor, time_only="", ends_at=99):
        self.truth = {s.image.tobytes(): s for s in tests}
        self.factor, self.time_only, self.ends_at, self.asked = factor, time_only, ends_at, []

    def deblend(self, given, **settings):
        self.asked.append(len(given))
        if len(self.asked) > self.ends_at:
            raise peer.Missing("out of memory")
        truth = [self.truth[s.image.tobytes()] for s in given]
        return [exchange.Model(self.factor * t.flux, self.factor * t.truth, np.array([0.5, 0.6]), np.array([0.1, 0.2]),
                               7, "") for t in truth]

    def close(self):
        self.asked.append("closed")


def compared(monkeypatch, **fakes):
    """`run_peers` of made-up deblenders on five scenes, two at a time."""
    tests = TestScenes(5)
    fakes = {name: Fake(tests, *arguments) for name, arguments in fakes.items()}
    monkeypatch.setattr(comparison, "start", lambda *_: (dict(fakes), {
        name: {"version": f.version, "how": f.how, "time_only": f.time_only} for name, f in fakes.items()}))
    entries = [comparison.DeblenderRun(name, name, {"e_rel": 1e-4}, 4 if name == "scarlet2" else 200) for name in fakes]
    return comparison.run_peers(tests, None, 2, entries=entries), fakes


def test_peers_are_compared_in_turn(monkeypatch):
    figures, fakes = compared(monkeypatch, deblendrt=(1.01,), sep=(1.2,), scarlet2=(0.9,), madness=(5.0, "random"))
    assert fakes["sep"].asked == fakes["deblendrt"].asked == [2, 2, 1, "closed"]
    assert fakes["scarlet2"].asked == [2, 2, "closed"]
    cost = figures["costs"]["scarlet2"]
    assert (cost["n_scene"], cost["n_source"], cost["iterations"]) == (4, 8, [7] * 4)
    assert cost["ms_per_source"] == pytest.approx({"processor": 200, "wall": 200, "processor_compiling": 50,
                                                   "wall_compiling": 100})
    assert figures["accuracy"]["sep"]["flux_error_r"] == pytest.approx(0.2)
    assert figures["accuracy"]["scarlet2"]["flux_error_r"] == pytest.approx(0.1)
    assert [part["n_scene"] for part in figures["parts"]] == [5, 4]
    assert set(figures["parts"][0]["summary"]) == {"deblendrt", "sep", "noise floor"}
    assert set(figures["parts"][1]["summary"]) == {"deblendrt", "sep", "scarlet2", "noise floor"}


def test_what_may_not_be_judged_has_times_only(monkeypatch):
    figures, _ = compared(monkeypatch, deblendrt=(1.01,), madness=(5.0, "random weights: time only"))
    assert figures["costs"]["madness"]["ms_per_source"]["processor"] == pytest.approx(200)
    without_costs = json.dumps([figures["accuracy"], figures["parts"]])
    assert "madness" not in without_costs


def test_a_peer_that_ends_takes_no_other_with_it(monkeypatch):
    figures, _ = compared(monkeypatch, deblendrt=(1.01,), sep=(1.2, "", 1))
    assert figures["deblenders"]["sep"] == {"missing": "ended at scenes 2 to 3: out of memory"}
    assert set(figures["costs"]) == set(figures["accuracy"]) == {"deblendrt"}


def test_nearer_counts_no_failed_source():
    found = comparison.nearer(np.array([0.1, 0.3, np.nan, 0.1]), np.full(4, 0.2), np.array([1, 1, 1, 5.0]),
                              (0, 2, 10, 20))
    assert [row["n"] for row in found] == [3, 1, 0]
    assert found[0]["fraction"] == pytest.approx(1 / 3)
    assert found[1]["fraction"] == 1.0
    assert np.isnan(found[2]["fraction"])


def test_page_of_made_up_results(tmp_path):
    rng = np.random.default_rng(0)
    snr, blendedness = rng.uniform(5, 500, 60), rng.uniform(0, 0.9, 60)
    columns = {name: np.full(60, 0.02) for name in (*page.ROWS, "bias_r", "bias_i")}
    of_the_floor = ("flux_error_r", "flux_error_i", "color_error", "bias_r", "bias_i")
    entries = {"deblendrt": columns, "scarlet_lite": {name: 3 * values for name, values in columns.items()},
               "noise floor": {name: columns[name] / 2 for name in of_the_floor}}
    peer_and_own = np.full(60, 0.06), np.full(60, 0.02)
    bins = {"by_snr": comparison.nearer(*peer_and_own, snr, report.SNR_EDGES),
            "by_blendedness": comparison.nearer(*peer_and_own, blendedness, report.BLENDEDNESS_EDGES)}
    time = {"processor": 0.95, "wall": 1200.4, "processor_compiling": 25.0, "wall_compiling": 26.0}
    cost = {"deblender": "scarlet_lite", "settings": {"max_iter": 200}, "n_scene": 10, "n_source": 60,
            "ms_per_source": time, "iterations": [20, 30, 40],
            "errors": ["scene 4: RuntimeError: too many"],
            "n_missed": 0}
    figures = {
        "command": "python -m perf.peers --n-scene 10", "scenes_sha256": "0", "n_scene": 10, "scenes_at_once": 5,
        "costs": {"deblendrt": {**cost, "iterations": [], "errors": [],
                                "ms_per_source": {**time, "processor_compiling": 0.0}},
                  "scarlet_lite": cost, "madness": {**cost, "deblender": "madness", "errors": []},
                  "sep": {**cost, "deblender": "sep", "errors": [], "n_missed": 9}},
        "deblenders": {"deblendrt": {"version": "", "how": "so"}, "scarlet_lite": {"version": "1", "how": "thus"},
                       "madness": {"version": "1", "how": "by name", "time_only": "random weights: time only"},
                       "scarlet2": {"missing": "no folder of environments was given"}},
        "accuracy": {name: {key: 0.02 for key in page.BESIDE} for name in ("deblendrt", "scarlet_lite", "sep")},
        "parts": [{"n_scene": 10, "n_source": 60, "nearer": {"scarlet_lite": bins},
                   "summary": {name: comparison.summarise(c, snr, blendedness) for name, c in entries.items()}}],
        "environment": report.environment(), "load": [1.0, 2.0, 3.0], "seconds": 60.0}
    text = page.markdown(json.loads(json.dumps(figures)))
    assert "- scarlet2: not run: no folder of environments was given." in text
    times = "| max_iter 200 | 10 | 60 | 30 | 0.95 | 1200 | 25 |"
    assert f"| scarlet_lite {times} 0.0200 | 0.0200 | 0.0200 | 1 |" in text
    assert f"| madness {times} random weights: time only | – | – | 0 |" in text
    assert "- sep detected nothing at 9 of the 60 positions" in text
    assert "| flux error r | 0.0200 | 0.0600 | 0.0100 |" in text
    assert "- scarlet_lite, scene 4: RuntimeError: too many" in text
    assert "| r | +2.00% | +6.00% | +1.00% |" in text
    page.draw(figures, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 10_000
