"""The specification of every kernel: NumPy, written to be read."""
