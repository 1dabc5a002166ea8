"""The networks of a model, in PyTorch, and their training."""
