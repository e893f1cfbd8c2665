"""Training of the packaged model: autoencoder, latents, text-conditioned diffusion."""
