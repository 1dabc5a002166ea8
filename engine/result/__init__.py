"""Results: one row per source, as tables, files and figures."""
