"""Measurements of a solution: photometry, errors, fit quality, moments, star or galaxy."""
