"""Images from FITS files: the planes of a file, and their assembly."""
