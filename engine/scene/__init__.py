"""The engine's input, checked: arguments, scenes, flags, settings and PSF images, and its division into work."""
