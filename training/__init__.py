"""Trains a survey's model: simulated galaxies, a basis, networks, and figures of the result."""
