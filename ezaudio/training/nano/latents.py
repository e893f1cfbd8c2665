"""The bank of training latents: whole clips encoded once, with the sound each belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ezaudio.data.clips import render
from ezaudio.data.synthesis import Sound
from ezaudio.vae import AutoencoderOobleck
from ezaudio.weights import save_atomic

CLIP_FRAMES = 256


@dataclass(frozen=True, slots=True)
class LatentBank:
    """latents (N, C, L) in half precision; sound[i] is the index of clip i in the list of sounds."""

    latents: Tensor
    sound: Tensor

    def draw(self, rng: np.random.Generator, weights: np.ndarray, batch: int, frames: int) -> tuple[Tensor, list[int]]:
        """Random crops (B, C, frames) of clips whose sounds are drawn by weight, and their sounds."""
        sounds = rng.choice(len(weights), batch, p=weights / weights.sum())
        crops = []
        for sound in sounds:
            clips = torch.nonzero(self.sound == int(sound))[:, 0]
            clip, start = int(clips[rng.integers(len(clips))]), int(rng.integers(self.latents.shape[2] - frames + 1))
            crops.append(self.latents[clip, :, start : start + frames])
        return torch.stack(crops).float(), sounds.tolist()


@torch.no_grad()
def encode_bank(
    vae: AutoencoderOobleck, sounds: list[Sound], path: Path, clips_per_sound: int, seed: int = 0
) -> LatentBank:
    """Encode fresh clips of every sound (posterior means), or read the bank that `path` already holds."""
    if path.is_file():
        stored = load_file(path)
        return LatentBank(stored["latents"], stored["sound"])
    rng = np.random.default_rng(seed)
    latents, labels = [], []
    for _ in tqdm(range(clips_per_sound), desc="latents"):
        for index, sound in enumerate(sounds):
            audio = torch.from_numpy(render(rng, sound, CLIP_FRAMES * vae.config.hop))
            latents.append(vae.encode(audio[None, None])[0].half())
            labels.append(index)
    bank = LatentBank(torch.stack(latents), torch.tensor(labels))
    save_atomic({"latents": bank.latents, "sound": bank.sound}, path)
    return bank
