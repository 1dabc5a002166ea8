"""The model bundle, its checks, and the runtimes that run its networks."""
