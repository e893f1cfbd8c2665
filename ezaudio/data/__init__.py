"""Training data: manifests and clips, synthesised sounds, captions from models, precomputed latents."""
