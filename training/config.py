"""The training configuration: one TOML file describes a survey's model, from its population to its encoder.

Unknown keys are errors: a misspelt setting that is ignored costs an hour of training.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class DepthTable:
    """Seeing, noise and exposure of a survey's coadds, by band. galcheat has them for the surveys that it knows."""

    psf_fwhm: dict[str, float]  # arcsec, without the pixel
    sky_sigma: dict[str, float]  # nJy per pixel
    counts_per_njy: dict[str, float]  # electrons in the full exposure


@dataclasses.dataclass(frozen=True)
class Survey:
    """Bands, pixel scale, filter curves and depth."""

    galcheat_name: str | None  # the survey whose depth galcheat gives; None with a table `depth`
    bands: list[str]
    reference_band: str
    pixel_scale: float  # arcsec
    bandpass: str  # filter curves, with {band}; see `deblendrt.training.simulation.bandpass`
    depth: DepthTable | None = None

    def __post_init__(self) -> None:
        if self.reference_band not in self.bands:
            raise ValueError(f"reference_band: {self.reference_band!r} is not in bands")
        if (self.galcheat_name is None) == (self.depth is None):
            raise ValueError("the depth: expected either galcheat_name or a table [survey.depth]")
        for field in dataclasses.fields(DepthTable) if self.depth else ():
            values = getattr(self.depth, field.name)
            if set(values) != set(self.bands) or min(values.values()) <= 0:
                raise ValueError(f"depth.{field.name}: expected a positive number for each of {self.bands}, "
                                 f"got {values}")

    @property
    def reference_index(self) -> int:
        """Return the position of the reference band in `bands`."""
        return self.bands.index(self.reference_band)


@dataclasses.dataclass(frozen=True)
class StructureSettings:
    """Structure beyond bulge and disk, see `deblendrt.training.simulation.structure`; 0 turns an ingredient off."""

    # fractions of the galaxies
    plain: float = 0.0  # galaxies without any ingredient but the scatter of sizes
    continuous_index: float = 0.0  # Sersic indices from continuous distributions
    single_sersic: float = 0.0  # one profile for all light
    misaligned: float = 0.0  # a bulge whose angle is independent of the disk's; others are within 0.15 rad
    arms: float = 0.0
    bars: float = 0.0
    rings: float = 0.0
    lopsided: float = 0.0
    knots: float = 0.0
    companions: float = 0.0
    # strengths
    bulge_offset: float = 0.0  # half-light radii of the disk, per axis: scatter of the bulge's centre
    size_scatter: float = 0.0  # in ln radius, on top of the relation's
    color_scatter: float = 0.0  # mag, of each component and band

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{field.name}: expected a value from 0 to 1, got {value}")


@dataclasses.dataclass(frozen=True)
class Population:
    """Limits of the galaxy population, see `deblendrt.training.simulation.population`."""

    n_galaxy: int
    magnitude_min: float
    magnitude_max: float
    uniform_fraction: float  # fraction of the galaxies drawn uniform in magnitude
    surface_brightness_limit: float  # mag / arcsec^2, within the half-light radius
    bulge_sersic: list[float] = dataclasses.field(default_factory=lambda: [4.0])  # Sersic indices, equally likely
    disk_sersic: list[float] = dataclasses.field(default_factory=lambda: [1.0])
    structure: StructureSettings | None = None  # None: bulge and disk of one angle and centre

    def __post_init__(self) -> None:
        for name in ("bulge_sersic", "disk_sersic"):
            values = getattr(self, name)
            # GalSim's limits
            if not values or min(values) < 0.3 or max(values) > 6.2:
                raise ValueError(f"{name}: expected indices from 0.3 to 6.2, got {values}")


@dataclasses.dataclass(frozen=True)
class BasisSettings:
    """Orthonormal basis of stamps under the reference PSF."""

    stamp_size: int  # pixel, an odd multiple of `binning`
    core_size: int  # pixel, an odd multiple of `binning`: single pixels inside, cells of `binning` pixels outside
    binning: int  # pixel, odd
    n_basis: int
    reference_psf_sigma: float  # pixel
    n_galaxy: int  # drawn for the principal components
    max_offset: float  # pixel, largest offset of the drawn galaxies' centres

    def __post_init__(self) -> None:
        sizes = self.stamp_size, self.core_size
        odd = self.binning > 0 and all(size > 0 and size % (2 * self.binning) == self.binning for size in sizes)
        if not (odd and self.binning % 2 and self.core_size <= self.stamp_size):
            raise ValueError("stamp_size, core_size and binning: expected odd multiples of an odd binning, the core "
                             f"not the larger one, got {self.stamp_size}, {self.core_size} and {self.binning}")


@dataclasses.dataclass(frozen=True)
class Vae:
    """Decoder and encoder of isolated galaxies, see `deblendrt.training.networks.vae`."""

    n_shape: int
    n_component: int
    hidden: int
    n_layer: int
    encoder_hidden: int
    shape_radius: float  # radius of the ball that holds all shapes
    batch_size: int
    n_step: int
    learning_rate: float
    model_error: float  # relative misfit below which bright galaxies are weighted down


@dataclasses.dataclass(frozen=True)
class Flow:
    """Normalizing flow of the shape latents, given the fluxes, see `deblendrt.training.networks.flow`."""

    n_transform: int
    hidden: int
    batch_size: int
    n_step: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Deblending encoder, see `deblendrt.training.networks.deblending_encoder`."""

    cutout_size: int  # pixel, odd
    n_blend: int  # cutouts to train on
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
    basis: BasisSettings
    vae: Vae
    flow: Flow
    encoder: Encoder

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionary of plain values, as checkpoints and the bundle's manifest store it."""
        return dataclasses.asdict(self)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """A value converted to the declared type of its field."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in parts:
        return None if value is None else _convert(parts[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not (origin or kind):
        raise ValueError(f"{where}: expected {(origin or kind).__name__}, got {value!r}")
    if origin is list:
        return [_convert(parts[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        return {key: _convert(parts[1], item, f"{where}.{key}") for key, item in value.items()}
    return value


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table, got {values!r}")
    types = typing.get_type_hints(cls)
    default = {f.name for f in dataclasses.fields(cls)
               if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING}
    optional = default | {key for key, kind in types.items() if type(None) in typing.get_args(kind)}
    unknown = sorted(set(values) - set(types))
    missing = sorted(set(types) - set(values) - optional)
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}")
    built = {key: None for key in optional - default}
    built |= {key: _convert(types[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """Build a `Config`, naming every unknown, missing or mistyped key."""
    config: Config = _build(Config, values, where)
    if config.encoder.cutout_size % 2 == 0:
        raise ValueError(f"{where}: encoder.cutout_size must be odd")
    if config.encoder.cutout_size > config.basis.core_size:
        raise ValueError(f"{where}: encoder.cutout_size: expected at most basis.core_size, {config.basis.core_size}, "
                         f"got {config.encoder.cutout_size}: cutouts are cut from windows of that size")
    return config


def load(path: str | Path) -> Config:
    """Read a configuration.

    Parameters
    ----------
    path : str or Path
        A TOML file, or the name of one that ships with the package (``lsst.toml``, ``hsc.toml``, ``smoke.toml``).

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
