"""Images and catalogues in and out, checked before memory is taken."""
