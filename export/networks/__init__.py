"""The networks of a bundle: from PyTorch to ONNX, gradients included."""
