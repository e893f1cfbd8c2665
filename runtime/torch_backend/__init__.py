"""Backend `torch`: a bundle's graphs as PyTorch modules; on an NVIDIA GPU, a generation is one CUDA graph."""
