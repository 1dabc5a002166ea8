"""Figures and numbers that tell how good a trained model is."""
