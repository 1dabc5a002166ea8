"""Trained networks to a bundle of ONNX graphs with their gradients, and a bundle to graphs for other languages."""
