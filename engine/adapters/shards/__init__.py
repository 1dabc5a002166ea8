"""Runs over long lists of inputs, divided among processes."""
