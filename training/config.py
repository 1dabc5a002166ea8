"""The training configuration: one TOML file describes a survey's model from population to encoder.

Unknown keys are errors: a misspelt setting that is silently ignored costs an hour of training.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Survey:
    """Bands, pixel scale and where galcheat and GalSim find the rest."""

    galcheat_name: str
    bands: list[str]
    reference_band: str
    pixel_scale: float  # arcsec
    bandpass: str  # file name under GalSim's share/bandpasses, with {band}

    @property
    def reference_index(self) -> int:
        """Position of the reference band in `bands`."""
        return self.bands.index(self.reference_band)


@dataclasses.dataclass(frozen=True)
class Population:
    """Galaxy population, see `deblendrt.training.population`."""

    n_galaxy: int
    magnitude_min: float
    magnitude_max: float
    uniform_fraction: float
    surface_brightness_limit: float  # mag / arcsec^2


@dataclasses.dataclass(frozen=True)
class Basis:
    """Orthonormal basis of stamps under the reference PSF."""

    stamp_size: int  # pixel, an odd multiple of `binning`
    core_size: int  # pixel, another: single pixels inside, cells of `binning` pixels outside
    binning: int  # pixel, odd
    n_basis: int
    reference_psf_sigma: float  # pixel
    n_galaxy: int
    max_offset: float  # pixel

    def __post_init__(self) -> None:
        sizes = self.stamp_size, self.core_size
        odd = self.binning > 0 and all(size > 0 and size % (2 * self.binning) == self.binning for size in sizes)
        if not (odd and self.binning % 2 and self.core_size <= self.stamp_size):
            raise ValueError("stamp_size, core_size and binning: expected odd multiples of an odd binning, the core "
                             f"not the larger one, got {self.stamp_size}, {self.core_size} and {self.binning}")


@dataclasses.dataclass(frozen=True)
class Vae:
    """Decoder and encoder of isolated galaxies."""

    n_shape: int
    n_component: int
    hidden: int
    n_layer: int
    encoder_hidden: int
    shape_radius: float
    batch_size: int
    n_step: int
    learning_rate: float
    model_error: float


@dataclasses.dataclass(frozen=True)
class Flow:
    """Normalizing flow over the shape latents, conditioned on the fluxes."""

    n_transform: int
    hidden: int
    batch_size: int
    n_step: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Deblending encoder: noisy blended cutout to a latent start."""

    cutout_size: int
    n_blend: int
    batch_size: int
    n_epoch: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole training run."""

    name: str
    seed: int
    survey: Survey
    population: Population
    basis: Basis
    vae: Vae
    flow: Flow
    encoder: Encoder

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, as stored in checkpoints and in the bundle's manifest."""
        return dataclasses.asdict(self)


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    types = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(types))
    missing = sorted(set(types) - set(values))
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}")
    built = {}
    for key, kind in types.items():
        value = values[key]
        if dataclasses.is_dataclass(kind):
            value = _build(typing.cast(type, kind), value, f"{where}.{key}")
        elif kind is float and isinstance(value, int):
            value = float(value)
        elif kind in (int, float, str) and type(value) is not kind:
            raise ValueError(f"{where}.{key}: expected {kind.__name__}, got {value!r}")
        built[key] = value
    try:
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """Build a `Config`, naming every unknown, missing or mistyped key."""
    config: Config = _build(Config, values, where)
    if config.survey.reference_band not in config.survey.bands:
        raise ValueError(f"{where}.survey.reference_band: {config.survey.reference_band!r} is not in survey.bands")
    if config.encoder.cutout_size % 2 == 0:
        raise ValueError(f"{where}: encoder.cutout_size must be odd")
    return config


def load(path: str | Path) -> Config:
    """Read a configuration.

    Parameters
    ----------
    path : str or Path
        A TOML file, or the name of one that ships with the package (``lsst.toml``, ``smoke.toml``).

    Raises
    ------
    FileNotFoundError
        Neither the path nor a shipped configuration of that name exists.
    ValueError
        A key is unknown, missing or of the wrong type.
    """
    path = Path(path)
    shipped = Path(__file__).parent / "configs" / path.name
    if not path.exists():
        if len(path.parts) == 1 and shipped.exists():
            path = shipped
        else:
            raise FileNotFoundError(f"no configuration {path}; shipped ones: "
                                    + ", ".join(sorted(p.name for p in shipped.parent.glob("*.toml"))))
    with path.open("rb") as file:
        return from_dict(tomllib.load(file), path.name)
