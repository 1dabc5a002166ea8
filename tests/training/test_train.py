"""The training pipeline from end to end, killed and resumed, exported, and used on a simulated scene."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for module in ("zuko", "galsim", "galcheat", "tqdm"):
    pytest.importorskip(module)

from deblendrt.engine.deblender import Deblender  # noqa: E402
from deblendrt.engine.scene.flags import NOT_FITTED  # noqa: E402
from deblendrt.training import checkpoint, config, train  # noqa: E402
from deblendrt.training.networks import vae  # noqa: E402
from deblendrt.training.simulation import blend_scenes, survey  # noqa: E402


def small() -> config.Config:
    """The smoke configuration, reduced to seconds."""
    settings = config.load("smoke.toml")
    return dataclasses.replace(
        settings,
        population=dataclasses.replace(settings.population, n_galaxy=400),
        basis=dataclasses.replace(settings.basis, stamp_size=33, n_basis=32, n_galaxy=150),
        vae=dataclasses.replace(settings.vae, n_step=500, hidden=48, encoder_hidden=48),
        flow=dataclasses.replace(settings.flow, n_step=60),
        encoder=dataclasses.replace(settings.encoder, cutout_size=21, n_blend=160, batch_size=32, n_epoch=1))


class Killed(Exception):
    """Stands for the signal that kills a run."""


def kill_after_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop right after the VAE's first intermediate checkpoint is written."""
    write = checkpoint.write_atomically

    def deadly(path: Path, writer: Any) -> None:
        write(path, writer)
        if path.name == "vae.part.pt":
            raise Killed

    monkeypatch.setattr(checkpoint, "write_atomically", deadly)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one configuration: without interruption, and killed in the middle of the VAE."""
    root = tmp_path_factory.mktemp("checkpoints")
    straight, killed = root / "straight", root / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "train_vae", functools.partial(vae.train_vae, checkpoint_every=200))
        train.train(small(), straight)
        with pytest.MonkeyPatch.context() as inner:
            kill_after_first_part(inner)
            with pytest.raises(Killed):
                train.train(small(), killed)
        assert (killed / "vae.part.pt").exists()
        assert not (killed / "decoder.pt").exists()
        with pytest.raises(FileNotFoundError, match=r"decoder\.pt is missing"):
            checkpoint.load_model(killed)
        train.train(small(), killed)
    return straight, killed


@pytest.mark.slow
def test_a_killed_run_ends_where_the_other_did(trained: tuple[Path, Path]) -> None:
    straight, killed = trained
    assert not (killed / "vae.part.pt").exists()
    assert {p.name for p in killed.iterdir()} == {p.name for p in straight.iterdir()}
    assert (killed / "vae_history.json").read_text() == (straight / "vae_history.json").read_text()
    assert (killed / "prior.json").read_text() == (straight / "prior.json").read_text()
    for name in ("decoder.pt", "galaxy_encoder.pt", "prior.pt", "encoder.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in trained)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=f"{name}: {key}")


@pytest.mark.slow
def test_a_finished_run_does_nothing_more(trained: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    straight, _ = trained
    before = {p.name: p.stat().st_mtime_ns for p in straight.iterdir() if p.name != "config.json"}
    with caplog.at_level("INFO", "deblendrt.train"):
        train.train(small(), straight)
    assert sum("done before" in r.message for r in caplog.records) == len(train.TRAINING_STAGES)
    assert {p.name: p.stat().st_mtime_ns for p in straight.iterdir() if p.name != "config.json"} == before
    with pytest.raises(ValueError, match="another configuration"):
        train.train(dataclasses.replace(small(), seed=99), straight)


@pytest.mark.slow
def test_the_model_is_sane(trained: tuple[Path, Path]) -> None:
    model = checkpoint.load_model(trained[0])
    n_shape = model.config.vae.n_shape
    assert model.start_shape.shape == (n_shape,)
    assert np.linalg.eigvalsh(model.prior_curvature).min() > 0
    percentiles = list(model.log_prob_percentiles.values())
    assert percentiles == sorted(percentiles)
    assert not any(p.requires_grad for p in model.decoder.parameters())
    assert not model.decoder.training
    history = json.loads((trained[0] / "vae_history.json").read_text())
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.slow
def test_exported_it_deblends(trained: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    from deblendrt.export.bundle import write_bundle

    model = checkpoint.load_model(trained[1])
    lines = write_bundle(model, tmp_path / "bundle")
    assert lines
    deblender = Deblender.load(tmp_path / "bundle")
    rng = np.random.default_rng(4)
    depth = survey.depth(model.config.survey)
    psf = survey.nominal_psf(depth)
    pool = blend_scenes.natural_population(model.config, 200, rng, magnitude_limit=23.0)
    scene = blend_scenes.random_blend_scene(pool, psf, depth, rng, shape=(61, 61), n_source=(3, 3))
    options: dict[str, Any] = {"variance": scene.variance, "psf": scene.psf}
    start = deblender.deblend_batch(scene.image, scene.centers, n_iteration=0, **options)
    result = deblender.deblend_batch(scene.image, scene.centers, **options)
    assert not (result.flags & NOT_FITTED).any()
    assert result.objective[0] < start.objective[0]
    assert result.scene_chi2[0] < start.scene_chi2[0]
    i = model.config.survey.reference_index
    np.testing.assert_allclose(result.flux[:, i], scene.flux[:, i], rtol=0.5)
    encoded = deblender.deblend_batch(scene.image, scene.centers, start="encoder", **options)
    np.testing.assert_allclose(encoded.flux[:, i], scene.flux[:, i], rtol=0.5)


def test_seeds_differ_by_stage() -> None:
    settings = small()
    seeds = {train.seed(settings, stage) for stage in train.TRAINING_STAGES}
    assert len(seeds) == len(train.TRAINING_STAGES)
    assert seeds == {train.seed(small(), stage) for stage in train.TRAINING_STAGES}
    other = dataclasses.replace(settings, seed=2)
    assert seeds.isdisjoint({train.seed(other, stage) for stage in train.TRAINING_STAGES})


def test_command_line_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "euclid.toml", "--out", str(tmp_path)]) == 1
    assert "euclid.toml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--config", "smoke.toml", "--out", str(tmp_path), "--stages", "basis,walk"])
    assert "walk" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--config", "smoke.toml"])


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    checkpoint.write_atomically(path, lambda file: np.savez(file, a=np.ones(3)))
    with pytest.raises(RuntimeError, match="half way"):
        checkpoint.write_atomically(path, fail_half_way)
    with np.load(path) as stored:  # the old file is complete
        np.testing.assert_array_equal(stored["a"], np.ones(3))


def fail_half_way(file: BinaryIO) -> None:
    file.write(b"PK")
    raise RuntimeError("half way")


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load_model(tmp_path)
