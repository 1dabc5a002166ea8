"""Memory and streams of a device; joint fluxes and areas of light on it."""
