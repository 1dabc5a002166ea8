"""Modes of detail in a bundle: written, read again, refused if they are damaged, and learnt by the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

for name in ("torch", "onnx", "onnxscript", "zuko", "galsim", "galcheat"):
    pytest.importorskip(name)

from deblendrt.engine.model.bundle import load_bundle  # noqa: E402
from deblendrt.engine.model.manifest import MANIFEST, BundleError  # noqa: E402
from deblendrt.export import cli  # noqa: E402
from deblendrt.export.bundle import write_detail  # noqa: E402
from deblendrt.training.detail.modes import settings_of  # noqa: E402

N_BASIS = 7  # of the toy bundle


def test_round_trip(toy_bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shared, per_band = (rng.standard_normal((n, N_BASIS)).astype(np.float32) for n in (5, 3))
    write_detail(toy_bundle, tmp_path / "new", shared, per_band, model_version="9")
    old, new = load_bundle(toy_bundle), load_bundle(tmp_path / "new")
    np.testing.assert_array_equal(new.detail_shared, shared)
    np.testing.assert_array_equal(new.detail_band, per_band)
    assert (new.model_version, new.name) == ("9", old.name)
    assert not new.detail_shared.flags.writeable
    changed = {name for name in old.files if old.files[name] != new.files[name]}
    assert changed == {"detail_shared.npy", "detail_band.npy"}


def test_an_existing_bundle_stays(toy_bundle: Path, tmp_path: Path) -> None:
    modes = np.zeros((0, N_BASIS))
    write_detail(toy_bundle, tmp_path / "new", modes, modes, model_version="1")
    with pytest.raises(FileExistsError, match="overwrite"):
        write_detail(toy_bundle, tmp_path / "new", modes, modes, model_version="2")


@pytest.mark.parametrize("name", ["detail_shared.npy", "detail_band.npy"])
@pytest.mark.parametrize("shape", [(2, N_BASIS + 1), (N_BASIS,), (1, 2, N_BASIS)])
def test_wrong_shapes(toy_bundle: Path, reseal: Callable[[Path], None], name: str, shape: tuple[int, ...]) -> None:
    np.save(toy_bundle / name, np.zeros(shape, np.float32))
    reseal(toy_bundle)
    with pytest.raises(BundleError, match=rf"{name}: expected shape"):
        load_bundle(toy_bundle)


@pytest.mark.parametrize("name", ["detail_shared.npy", "detail_band.npy"])
def test_damage(toy_bundle: Path, name: str) -> None:
    content = bytearray((toy_bundle / name).read_bytes())
    content[-1] ^= 0x80
    (toy_bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        load_bundle(toy_bundle)
    (toy_bundle / name).unlink()
    with pytest.raises(BundleError, match="missing"):
        load_bundle(toy_bundle)


@pytest.mark.parametrize("name", ["lsst", "hsc"])
def test_configuration_of_a_shipped_bundle(name: str) -> None:
    bundle = load_bundle(name)
    settings = settings_of(json.loads((bundle.path / MANIFEST).read_text())["training"])
    assert tuple(settings.survey.bands) == bundle.bands
    assert settings.basis.n_basis == bundle.n_basis


def test_command_names_wrong_stamps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--detail", "lsst", "--out", str(tmp_path / "new")]
    assert cli.main([*arguments, "--stamps", str(tmp_path)]) == cli.NO_INPUT
    assert "no FITS image" in capsys.readouterr().err
    assert cli.main([*arguments, "--galaxies", "0"]) == cli.NO_INPUT
    assert "n_galaxy: expected 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_command_learns_from_the_population(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--detail", "hsc", "--galaxies", "6", "--scale", "0.5", "--out", str(tmp_path / "new")]
    assert cli.main(arguments) == 0
    assert "detail of 6 galaxies" in capsys.readouterr().out
    bundle = load_bundle(tmp_path / "new")
    assert bundle.detail_shared.shape == (32, bundle.n_basis)
    assert bundle.detail_band.shape == (16, bundle.n_basis)
    assert np.isfinite(bundle.detail_shared).all()
    assert bundle.detail_shared.any()


def test_the_error_of_shared_light_is_stored(toy_bundle: Path, tmp_path: Path) -> None:
    modes = np.zeros((0, N_BASIS))
    write_detail(toy_bundle, tmp_path / "new", modes, modes, model_version="2", shared_light_error=0.25)
    assert load_bundle(tmp_path / "new").training["shared_light_error"] == 0.25
    write_detail(tmp_path / "new", tmp_path / "newer", modes, modes, model_version="3")
    assert load_bundle(tmp_path / "newer").training["shared_light_error"] == 0.25
    with pytest.raises(ValueError, match="shared_light_error: expected a value from 0 to 1, got 2"):
        write_detail(toy_bundle, tmp_path / "last", modes, modes, model_version="2", shared_light_error=2.0)
