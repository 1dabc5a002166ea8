"""Rubin's exposures and catalogues as scenes, and results as heavy footprints. Rubin's software is not needed."""

from deblendrt.engine.adapters.rubin.exposures import BandImage, HeavyFootprint, RubinScene, read_exposures

__all__ = ["BandImage", "HeavyFootprint", "RubinScene", "read_exposures"]
