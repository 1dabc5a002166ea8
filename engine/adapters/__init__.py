"""Ways to embed the engine: command line, shards, Dask, alert streams, Rubin, scarlet_lite, BTK."""
