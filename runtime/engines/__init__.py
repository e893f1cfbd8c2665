"""Engines for NVIDIA GPUs: built from a bundle's graphs by TensorRT or TensorRT-RTX, kept, and run without PyTorch."""
