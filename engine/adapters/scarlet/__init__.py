"""scarlet_lite's persisted models, in and out, without scarlet_lite."""
