"""Learning of detail: what galaxies have in addition to what a bundle's decoder draws."""
