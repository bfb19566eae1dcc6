"""A trained model in the formats of other tools: ONNX, C, a web page."""
