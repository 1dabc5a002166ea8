"""Deblending on a Dask cluster."""
