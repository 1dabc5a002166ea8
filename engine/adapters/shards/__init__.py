"""Long lists of inputs, divided among processes."""
