"""What comes in, checked: arguments, scenes, flags, settings, PSF images, and how work is divided."""
