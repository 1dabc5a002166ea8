"""Trained torch models to bundles of ONNX graphs, gradients included."""
