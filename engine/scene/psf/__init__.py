"""PSFs: images, fields of cells, and the forms in which a caller may give them."""
