"""Mel energies of batches of clips, which the judge and the distances between sounds start from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ezaudio.runtime.spectrogram import mel_bank

FFT_SIZE, HOP, BANDS = 1024, 480, 64


class MelPower(nn.Module):
    """Power in BANDS mel bands every HOP samples (50 columns a second at 24 kHz): (B, T) → (B, BANDS, 1 + T // HOP)."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT_SIZE), persistent=False)
        bank = torch.from_numpy(mel_bank(sample_rate, FFT_SIZE, BANDS)).float()
        self.register_buffer("bank", bank, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        # Silence around the clip: reflected ends would not exist for clips shorter than a window.
        spectrum = torch.stft(
            audio, FFT_SIZE, HOP, window=self.get_buffer("window"), pad_mode="constant", return_complex=True
        )
        return self.get_buffer("bank") @ spectrum.abs().square()
