"""The page of `perf.studies.cpu` from made-up parts, and how parts are stored."""

from __future__ import annotations

import copy
import json

import pytest

pytest.importorskip("galsim")

from perf import report
from perf.studies.cpu import __main__ as cpu
from perf.studies.cpu import page


def part(figures, command="python -m perf.studies.cpu --part x"):
    return {"command": command, "time": "2026-01-01T00:00:00+00:00", "environment": report.environment(),
            "load": {"before": [1.0, 1.0, 1.0], "after": [2.0, 1.0, 1.0]}, "seconds": 60.0, "figures": figures}


def side(cpu_seconds, n_source=20, **extra):
    return {"n_source": n_source, "wall": [1.1 * s for s in cpu_seconds], "cpu": cpu_seconds, "instructions": [],
            "latency": {"p50": 0.5, "p99": 0.9, "n": 4}, "extra": extra,
            "accuracy": {"mean_flux_error_r": 3.21, "mean_flux_error_i": 4.0}, "objective": 1.0, "result_sha256": None,
            "counts": {}, "stages": {"render": 0.5, "solve": 0.25}, "stages_total": 0.75, "skipped": ["ops.gone"]}


def versions(names, n_pair=8, **extra):
    band = {"median": 0.5, "low": 0.4, "high": 0.6, "confidence": 0.992 if n_pair >= 8 else 0.0, "n": n_pair}
    case = {"size": 4, "unit": "scenes", "inputs_sha256": None, "base": side([2.0, 2.0, 9.0], **extra),
            "candidate": side([1.0, 1.0, 5.0], **extra), "ratio": {"wall": band, "cpu": band}}
    return {"sources": {"base": {"name": "v1", "commit": "abc", "sha256": "0"},
                        "candidate": {"name": "this tree", "commit": "def", "sha256": "1"}},
            "cases": {name: copy.deepcopy(case) for name in names}}


def errors(value):
    return {name: {"n": 5, **{band + end: value for band in "ri" for end in ("", "_mean", "_p90")}}
            for name in ("all", "blended")}


def parts():
    rows = [{"solver": solver, "n_iteration": n, "ms_per_source": 10.0 + n, "errors": errors(0.02 + 0.1 / n),
             "gap": {"median": 1.0 / n, "p90": 3.0 / n, "negative": 0.0, "least": 0.0}}
            for solver, n in (("gauss_newton", 1), ("gauss_newton", 12), ("gauss_newton", 60), ("adam", 50))]
    points = [{"shape": shape, "threads": 1, "n_source": n, "n_scene": 3, "side": 101, "wall": 0.03 * n,
               "cpu": 0.025 * n, "bytes_before": 2e8, "bytes_peak": 3e8, "bytes_images": 1e6, "fitted": n}
              for n in (10, 100, 1000) for shape in ("many", "one")]
    fit = {"all": {"exponent": 1.0, "error": 0.01, "n": 3},
           "from 100 sources": {"exponent": 1.02, "error": 0.0, "n": 2}}
    threads = [{"n_source": 1000, "threads": 2, "rate_alone": 33.0, "rate": 60.0, "efficiency": 0.909, "work": 1.05}]
    medians = {"all": {"flux_error_r": 0.03, "flux_error_i": 0.03},
               "blendedness_above_0.3": {"flux_error_r": 0.07, "flux_error_i": 0.07}}
    cost = {"n_scene": 4, "n_source": 20, "errors": [], "settings": {}, "ms_per_source": {
        "processor": 25.0, "wall": 26.0, "processor_compiling": 0.0, "wall_compiling": 0.0}}
    slow = {**cost, "ms_per_source": {"processor": 50.0, "wall": 55.0, "processor_compiling": 9.0,
                                      "wall_compiling": 9.0}}
    return {
        "peers": part({"n_scene": 4, "scenes_at_once": 10, "costs": {"deblendrt": cost, "rival": slow, "other": slow},
                       "accuracy": {"deblendrt": {}, "rival": {}},
                       "parts": [{"n_scene": 4, "summary": {"deblendrt": medians, "rival": medians,
                                                            "noise floor": medians}}],
                       "deblenders": {"deblendrt": {"version": "", "how": "so"},
                                      "rival": {"version": "2", "how": "thus"},
                                      "other": {"version": "1", "how": "hm", "time_only": "its prior is another"},
                                      "absent": {"missing": "no environment"}}}),
        "stages": part(versions(("single_stream", "patch"))),
        "latency": part(versions(("single_stream", "burst"), cutouts_per_second=10.0, offered_per_second=2000.0)),
        "start": part(versions(("cold_start", "memory"), peak_bytes=3e8, load_seconds=0.2)),
        "iterations": part({"n_scene": 4, "n_source": 20, "reference": 60, "default": 12, "rows": rows,
                            "noise_floor": errors(0.01), "saturation": {"all": 12, "all and blended": None}}),
        "linear": part({"points": points, "exponents": {"many": fit, "one": fit},
                        "threads": {"many": threads, "one": threads}, "memory_limit": 2e9, "n_cpu": 2}),
    }


def test_page_of_made_up_parts(tmp_path):
    figures = {"revision": 1, "summary": {}, "parts": json.loads(json.dumps(parts()))}
    tried = tmp_path / "tried.md"
    tried.write_text("Squaring the circle: 0.0 ms saved.\n")
    page.write(figures, tmp_path, tried)
    text = (tmp_path / "cpu.md").read_text()
    assert "| rival | 4, 20 | 50.0 | 55.0 | 9.00 | 2.00 | 3.0% |" in text
    assert "| other | 4, 20 | 50.0 | 55.0 | 9.00 | 2.00 | – |" in text
    assert "absent: not run: no environment." in text
    assert "Time only: its prior is another." in text
    assert "| patch | 4 scenes | 100 | 50.0 | 0.500 [0.400, 0.600], 99.2% of 8 pairs |" in text
    assert "| 3.21%, 4.00% | 3.21%, 4.00% |" in text
    assert "whose time goes to their callers: ops.gone" in text
    assert "| render | 25.0 | 25.0 | 25.0 | 25.0 |" in text
    assert "to the power 1.000 ± 0.010 (all, 3 points); 1.020 (from 100 sources, 2 points)" in text
    assert "| many | 1000 | 2 | 33.0 | 60.0 | 90.9% | 1.05 |" in text
    assert "peak 286 MiB, load 0.20 s" in text
    assert "| burst | 4 scenes | candidate | 500 | 900 | 4 | 50.0 | 10.0 | 2000.0 |" in text
    assert "Squaring the circle" in text
    assert "quick run" not in text
    for name in ("peers", "stages", "iterations", "linear"):
        assert (tmp_path / f"cpu_{name}.png").stat().st_size > 5_000


def test_what_is_missing_says_how_to_measure_it():
    stages = part(versions(("patch",), n_pair=2), "python -m perf.studies.cpu --quick")
    text = page.markdown({"parts": {"stages": stages}})
    assert "Not measured: `python -m perf.studies.cpu --part peers`." in text
    assert "0.500, no band of 2 pairs" in text
    assert "not to be quoted" in text
    assert "Nothing written yet" in text


def test_summary_takes_the_largest_run_and_medians():
    assert page.summary({}) == {}
    found = page.summary(parts() | {"start": part(versions(("cold_start",)))})
    assert found["ms_per_source"] == pytest.approx(25.0)
    assert found["ms_per_source_one_band"] == pytest.approx(50.0)
    assert found["cold_start_seconds"] == pytest.approx(1.1)


def test_parts_are_stored_one_by_one(tmp_path):
    path = tmp_path / "cpu.json"
    made = parts()
    cpu.merge(path, "linear", made["linear"])
    both = cpu.merge(path, "start", made["start"])
    assert set(both["parts"]) == {"linear", "start"} == set(cpu.stored(path)["parts"])
    assert both["summary"]["ms_per_source"] == pytest.approx(25.0)
    newer = copy.deepcopy(made["linear"]) | {"command": "newer"}
    assert cpu.merge(path, "linear", newer)["parts"]["linear"]["command"] == "newer"
    path.write_text(json.dumps({"revision": 0}))
    with pytest.raises(ValueError, match="expected revision 1, got 0"):
        cpu.stored(path)


def test_a_part_that_fails_takes_no_other_with_it(tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("no")

    made = parts()
    monkeypatch.setattr(cpu, "parts", lambda *_: {"peers": broken, "linear": lambda: made["linear"]["figures"]})
    assert cpu.main(["--out", str(tmp_path)]) == 1
    assert "peers: not measured: RuntimeError: no" in capsys.readouterr().err
    assert set(cpu.stored(tmp_path / "cpu.json")["parts"]) == {"linear"}


def test_commands_hold_no_folders(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "base" / "engine").mkdir(parents=True)
    monkeypatch.setattr(cpu, "parts", lambda *_: {"peers": dict, "stages": dict})
    monkeypatch.setattr(cpu, "run", lambda name, _, command: asked.append(command) or {})
    monkeypatch.setattr(cpu, "merge", lambda *_: {})
    monkeypatch.setattr(page, "write", lambda *_: None)
    cpu.main(["--out", str(tmp_path), "--base", str(tmp_path / "base"), "--environments", "/some/where",
              "--pairs", "3"])
    assert asked == ["python -m perf.studies.cpu --part peers --environments FOLDER",
                     "python -m perf.studies.cpu --part stages --base FOLDER --pairs 3"]
