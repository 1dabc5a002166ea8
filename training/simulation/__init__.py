"""Simulated galaxies, surveys and blended scenes, drawn with GalSim."""
