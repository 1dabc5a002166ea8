"""Readers of tables, and the identifiers in them."""
