"""What of `perf.peers` needs no peer: the exchange, a peer that is missing, the page of made-up results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("galsim")

from perf import report
from perf.peers import __main__ as peers
from perf.peers import exchange, page, peer


def scene(n_source=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((2, 9, 11)).astype(np.float32)
    return exchange.Scene(("g", "r"), np.full((2, 5, 5), 1 / 25), image, np.ones_like(image),
                          rng.uniform(1, 8, (n_source, 2)))


def model(given, factor=1.0):
    n_source = len(given.centers)
    images = np.zeros((n_source, *given.image.shape), np.float32)
    return exchange.Model(factor * np.ones((n_source, 2)), images, 0.5, 0.1, 7, "")


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
    return exchange.Model(np.full((n, 2), factor), np.zeros((n, *scene.image.shape), np.float32), 0.5, 0.0, 3, "")

exchange.serve(deblend, "1.2", "somehow")
"""


def test_a_peer_answers_and_a_scene_that_it_can_not_do_is_a_result(monkeypatch, tmp_path):
    fake = adapter(monkeypatch, tmp_path, FAKE)
    assert (fake.version, fake.how) == ("1.2", "somehow")
    done, failed = fake.deblend([scene(2), scene(3)], factor=4.0)
    fake.close()
    np.testing.assert_array_equal(done.flux, np.full((2, 2), 4.0))
    assert failed.error == "RuntimeError: too many"
    assert np.isnan(failed.flux).all()


def test_a_missing_peer_says_why(monkeypatch, tmp_path):
    with pytest.raises(peer.Missing, match="no python of an environment with scarlet2 was given"):
        peer.Peer("scarlet2", tmp_path / "python", tmp_path)
    with pytest.raises(peer.Missing, match="fake does not start: ModuleNotFoundError: No module named 'not_there'"):
        adapter(monkeypatch, tmp_path, "import not_there")


def test_interpreters():
    assert peers.interpreters(["scarlet2=/a/python"]) == {"scarlet2": Path("/a/python")}
    for wrong in ("scarlet2", "scarlet3=/a/python"):
        with pytest.raises(ValueError, match="expected one of scarlet_lite, scarlet2"):
            peers.interpreters([wrong])


def test_nearer_counts_no_failed_source():
    found = peers.nearer(np.array([0.1, 0.3, np.nan, 0.1]), np.full(4, 0.2), np.array([1, 1, 1, 5.0]), (0, 2, 10, 20))
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
    bins = {"by_snr": peers.nearer(np.full(60, 0.06), np.full(60, 0.02), snr, report.SNR_EDGES),
            "by_blendedness": peers.nearer(np.full(60, 0.06), np.full(60, 0.02), blendedness, report.BLENDEDNESS_EDGES)}
    cost = {"settings": {"max_iter": 200}, "n_scene": 10, "n_source": 60, "seconds": 6.0, "compile_seconds": 1.5,
            "iterations": [20, 30, 40], "errors": ["scene 4: RuntimeError: too many"]}
    figures = {
        "command": "python -m perf.peers --n-scene 10", "scenes_sha256": "0", "n_scene": 10, "costs": {
            "deblendrt": {**cost, "iterations": [], "errors": [], "compile_seconds": 0.0}, "scarlet_lite": cost},
        "deblenders": {"deblendrt": {"version": "", "how": "so"}, "scarlet_lite": {"version": "1", "how": "thus"},
                       "scarlet2": {"missing": "no python of an environment with scarlet2 was given"}},
        "parts": [{"n_scene": 10, "n_source": 60, "nearer": {"scarlet_lite": bins},
                   "summary": {name: peers.summarise(c, snr, blendedness) for name, c in entries.items()}}],
        "environment": report.environment(), "load": [1.0, 2.0, 3.0], "seconds": 60.0}
    text = page.markdown(json.loads(json.dumps(figures)))
    assert "- scarlet2: not run: no python of an environment with scarlet2 was given." in text
    assert "| scarlet_lite | max_iter 200 | 10 | 60 | 30 | 75.0 | 100 | 1 |" in text
    assert "| flux error r | 0.0200 | 0.0600 | 0.0100 |" in text
    assert "- scarlet_lite, scene 4: RuntimeError: too many" in text
    assert "| r | +2.00% | +6.00% | +1.00% |" in text
    page.draw(figures, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 10_000
