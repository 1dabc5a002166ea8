"""Training configurations: shipped files load, and every mistake is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deblendrt.training import config


@pytest.mark.parametrize("name", ["hsc.toml", "lsst.toml", "lsst_wide.toml", "smoke.toml"])
def test_shipped_configurations(name: str) -> None:
    settings = config.load(name)
    assert settings.survey.bands[settings.survey.reference_index] == settings.survey.reference_band == "i"
    assert settings.encoder.cutout_size % 2 == 1
    assert type(settings.vae.learning_rate) is float
    again = config.from_dict(json.loads(json.dumps(settings.to_dict())))  # as a checkpoint stores it
    assert again == settings


def changed(path: str, value: Any = None) -> dict[str, Any]:
    """The smoke configuration with one key changed, or removed when the value is None."""
    values = config.load("smoke.toml").to_dict()
    *sections, key = path.split(".")
    table = values
    for section in sections:
        table = table[section]
    if value is None:
        del table[key]
    else:
        table[key] = value
    return values


def depth(**entries: dict[str, Any]) -> dict[str, Any]:
    """A table [survey.depth] of two bands, changed by keyword."""
    return {"psf_fwhm": {"r": 0.7, "i": 0.6}, "sky_sigma": {"r": 1, "i": 2}, "counts_per_njy": {"r": 90, "i": 80},
            **entries}


def own_depth(**entries: dict[str, Any]) -> dict[str, Any]:
    """The smoke configuration for a survey that galcheat does not know."""
    values = changed("survey.galcheat_name")
    values["survey"] |= {"bands": ["r", "i"], "depth": depth(**entries)}
    return values


@pytest.mark.parametrize(("values", "named"), [
    (changed("vae.hiden", 3), r"config\.vae: unknown keys \['hiden'\]"),
    (changed("extra", 3), r"config: unknown keys \['extra'\]"),
    (changed("flow.hidden"), r"config\.flow: .*missing keys \['hidden'\]"),
    (changed("flow"), r"missing keys \['flow'\]"),
    (changed("vae.hidden", 3.0), r"config\.vae\.hidden: expected int, got 3\.0"),
    (changed("vae.hidden", "3"), r"config\.vae\.hidden: expected int, got '3'"),
    (changed("seed", True), r"config\.seed: expected int, got True"),
    (changed("name", 3), r"config\.name: expected str"),
    (changed("vae.learning_rate", "fast"), r"learning_rate: expected float"),
    (changed("survey.reference_band", "q"), r"reference_band: 'q' is not in"),
    (changed("basis.stamp_size", 48), r"config\.basis: .*odd multiples of an odd binning.*got 48, 27 and 3"),
    (changed("basis.stamp_size", 47), "got 47, 27 and 3"),
    (changed("basis.core_size", 25), "got 45, 25 and 3"),
    (changed("basis.core_size", 51), "not the larger one, got 45, 51 and 3"),
    (changed("basis.core_size", -3), "got 45, -3 and 3"),
    (changed("basis.binning", 2), "got 45, 27 and 2"),
    (changed("basis.binning", 0), "got 45, 27 and 0"),
    (changed("basis.binning", -3), "got 45, 27 and -3"),
    (changed("encoder.cutout_size", 30), "must be odd"),
    (changed("survey", "LSST"), r"config\.survey: expected a table, got 'LSST'"),
    (changed("survey.bands", "grizy"), r"config\.survey\.bands: expected list, got 'grizy'"),
    (changed("survey.bands", ["i", 3]), r"config\.survey\.bands\[1\]: expected str, got 3"),
    (changed("survey.galcheat_name"), r"config\.survey: the depth: expected either galcheat_name or a table"),
    (changed("survey.depth", depth()), r"config\.survey: the depth: expected either"),
    (own_depth(sky_sigma={"i": 2.0}), r"survey: depth\.sky_sigma: expected a positive number for each of \['r', "),
    (own_depth(psf_fwhm={"r": 0.7, "i": 0}), r"depth\.psf_fwhm: expected a positive number.*got .*'i': 0\.0"),
    (own_depth(psf_fwhm={"r": 0.7, "i": "0.6"}), r"config\.survey\.depth\.psf_fwhm\.i: expected float, got '0\.6'"),
    (own_depth(seeing={"r": 0.7, "i": 0.6}), r"config\.survey\.depth: unknown keys \['seeing'\]"),
    (changed("population.bulge_sersic", []), r"config\.population: bulge_sersic: expected indices from 0\.3 to 6\.2"),
    (changed("population.disk_sersic", [1, 0.2]), r"disk_sersic: expected indices .* got \[1\.0, 0\.2\]"),
    (changed("population.disk_sersic", 1.0), r"config\.population\.disk_sersic: expected list, got 1\.0"),
])
def test_mistakes_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config.from_dict(values)


def test_whole_numbers_serve_as_floats() -> None:
    settings = config.from_dict(changed("vae.learning_rate", 1))
    assert settings.vae.learning_rate == 1.0
    assert type(settings.vae.learning_rate) is float


def test_a_survey_of_its_own() -> None:
    survey = config.from_dict(own_depth()).survey
    assert survey.galcheat_name is None
    assert survey.depth == config.DepthTable({"r": 0.7, "i": 0.6}, {"r": 1.0, "i": 2.0}, {"r": 90.0, "i": 80.0})


def test_optional_keys() -> None:
    """Checkpoints and configurations without lists of Sersic indices have indices 4 and 1."""
    values = changed("survey.depth")
    del values["population"]["bulge_sersic"], values["population"]["disk_sersic"]
    assert config.from_dict(values) == config.load("smoke.toml")
    assert config.load("smoke.toml").population.bulge_sersic == [4.0]
    assert config.load("smoke.toml").population.disk_sersic == [1.0]


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hsc\.toml, lsst\.toml, lsst_wide\.toml, smoke\.toml"):
        config.load("euclid.toml")
    with pytest.raises(FileNotFoundError):
        config.load(tmp_path / "lsst.toml")  # a path is not the name of a shipped file
    own = tmp_path / "own.toml"
    own.write_text((Path(config.__file__).parent / "configs" / "smoke.toml").read_text().replace('"smoke"', '"own"'))
    assert config.load(own).name == "own"
