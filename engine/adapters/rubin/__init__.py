"""Rubin's exposures and catalogues in, their words out; needs none of Rubin's software."""
