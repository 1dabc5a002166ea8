"""Readers and writers of images and catalogues. Files are checked before memory is allocated for them."""
