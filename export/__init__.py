"""PyTorch → bundle: graphs cut by rate of change, written as ONNX, checked against the modules they came from."""
