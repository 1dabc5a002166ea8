"""The engine's solver as one ONNX graph, for languages other than Python."""
