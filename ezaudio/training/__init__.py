"""Training: a loop for every task, the paper's stages, ControlNet and autoencoder; `nano` has the packaged model."""
