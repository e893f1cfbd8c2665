"""Decoding in parts: the samples of the whole decode, from no more frames at once than a part needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ezaudio.config import preset
from ezaudio.random_weights import fill_randomly
from ezaudio.runtime import decoding
from ezaudio.vae import AutoencoderOobleck

VAE = preset("debug").vae


@pytest.fixture(scope="module")
def vae() -> AutoencoderOobleck:
    model = AutoencoderOobleck(VAE)
    fill_randomly(model, 0, "vae")
    return model.eval()


@pytest.mark.parametrize("seconds", [0.9, 1.0, 2.3, 5.0])
def test_parts_equal_the_whole(vae: AutoencoderOobleck, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONGEST_PART_S", 1)
    num_samples = round(seconds * VAE.sample_rate) - 7
    latents = np.random.default_rng(1).standard_normal((1, VAE.latent_channels, -(-num_samples // VAE.hop)))
    frames: list[int] = []

    def decode(part: np.ndarray) -> np.ndarray:
        frames.append(part.shape[2])
        with torch.no_grad():
            return vae.decode(torch.from_numpy(part))[:, 0].numpy()

    latents = latents.astype(np.float32)
    expected = decode(latents)[0, :num_samples]
    frames.clear()
    got = decoding.decode_parts(decode, latents, num_samples, VAE)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()  # 0
    assert len(frames) == max(1, int(np.ceil(num_samples / VAE.sample_rate)))
    assert max(frames) <= VAE.latent_rate + 2 * 10
