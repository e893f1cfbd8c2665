"""Text-conditioned latent diffusion: v-prediction, zero terminal SNR, a T5 encoder trained alongside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from ezaudio.blocks import DiTBlock
from ezaudio.config import EzAudioConfig
from ezaudio.data.clips import draw_caption, draw_sound
from ezaudio.data.synthesis import Sound
from ezaudio.dit import MaskDiT
from ezaudio.runtime.solvers import alphas_cumprod
from ezaudio.text import build_text_encoder, encode_text, tokenize
from ezaudio.training.checkpoint import Arrays
from ezaudio.training.nano.latents import LatentBank
from ezaudio.training.nano.state import TrainState

if TYPE_CHECKING:
    from transformers import T5EncoderModel

CAPTION_DROPOUT = 0.1
EDIT_SHARE = 0.1
# Where a sound begins is decided above step 600: there a latent of thousands of values still shows its events, but a
# model that sees these steps too rarely overlooks them and samples silence.
HIGH_NOISE_SHARE = 0.65
FRAMES = (64, 128, 256)
FRAME_SHARES = (0.4, 0.4, 0.2)
TOKENS_PER_BATCH = 1024


class TextToLatents(nn.Module):
    """What diffusion training updates: `text_encoder` and `dit`."""

    def __init__(self, config: EzAudioConfig) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(config.text)
        self.dit = MaskDiT(config.dit)


@dataclass(frozen=True, slots=True)
class Batch:
    """latents (B, C, L), noise like them, timesteps (B,), input_ids and attention_mask (B, S), mask (B, L) or None."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor | None = None


def draw_batch(
    seed: tuple[int, ...], bank: LatentBank, sounds: list[Sound], tokenizer: Tokenizer, tokens: int = TOKENS_PER_BATCH
) -> Batch:
    """A batch of equal-length crops, timesteps spread evenly, some captions dropped, some batches with a kept part."""
    rng = np.random.default_rng(seed)
    frames = min(int(rng.choice(FRAMES, p=FRAME_SHARES)), bank.latents.shape[2])
    batch = max(2, tokens // frames)
    latents, labels = bank.draw(rng, np.array([sound.weight for sound in sounds]), batch, frames)
    captions = ["" if rng.random() < CAPTION_DROPOUT else draw_caption(rng, sounds[label]) for label in labels]
    spread = (rng.random() + (np.arange(batch) + rng.random(batch)) / batch) % 1.0
    timesteps = np.interp(spread, [0, 1 - HIGH_NOISE_SHARE, 1], [0, 600, 999.999]).astype(np.int64)
    mask = None
    if rng.random() < EDIT_SHARE:
        start, length = rng.integers(0, frames, batch), rng.integers(frames // 4, frames, batch)
        distance = (np.arange(frames)[None] - start[:, None]) % frames
        mask = torch.from_numpy(distance < length[:, None])
    noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
    return Batch(latents, noise, torch.from_numpy(timesteps), *tokenize(tokenizer, captions), mask)


def velocity_loss(model: TextToLatents, batch: Batch, table: Tensor) -> Tensor:
    """Mean squared error of v = √ᾱ·ε − √(1 − ᾱ)·x₀ over the frames to generate. table (1000,) holds ᾱ."""
    signal = table[batch.timesteps].sqrt()[:, None, None]
    spread = (1 - table[batch.timesteps]).sqrt()[:, None, None]
    noisy = signal * batch.latents + spread * batch.noise
    target = signal * batch.noise - spread * batch.latents
    context = encode_text(model.text_encoder, batch.input_ids, batch.attention_mask.long())
    given = None if batch.mask is None else batch.latents
    velocity = model.dit(noisy, batch.timesteps, context, batch.attention_mask, given, batch.mask).float()
    error = (velocity - target).square().mean(1)
    return error.mean() if batch.mask is None else error[batch.mask].mean()


@torch.no_grad()
def start_as_pass_through(dit: MaskDiT, generator: torch.Generator) -> None:
    """Let the noisy latent reach the output from the first step: an orthonormal embedding, read out by its transpose.

    The velocity of a channel is mostly a gain times its own noisy value. Finding that path through random projections
    takes a small model thousands of steps (loss after 300 steps on four clips: 0.59 without, 0.36 with this start).
    Needs a width of at least the latent channels.
    """
    channels, width = dit.config.latent_channels, dit.config.width
    basis = torch.linalg.qr(torch.randn(width, channels, generator=generator)).Q
    embed, final = dit.model.patch_embed.proj, dit.model.final_block
    embed.weight[:, :channels, 0] = basis
    embed.weight[:, channels : 2 * channels] *= 0.3
    final.linear.weight.copy_(0.1 * basis.T)
    final.final_layer.weight.mul_(0.1)
    final.final_layer.weight[:, :, 1] += torch.eye(channels)
    for block in dit.model.out_blocks:
        assert isinstance(block, DiTBlock)
        skip = block.skip_linear.weight
        skip[:, width:] *= 0.3
        skip[:, :width] = torch.eye(width)


def pretrain_text(
    encoder: T5EncoderModel, tokenizer: Tokenizer, sounds: list[Sound], num_steps: int = 400, seed: int = 0
) -> float:
    """Teach the text encoder to name the sound of a caption, so that cross-attention starts from states that differ.

    Stops once the captions are told apart. Returns the last loss (cross-entropy over sounds, from the mean state).
    """
    width = encoder.config.d_model
    head = nn.Linear(width, len(sounds))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 1e-3)
    loss = torch.zeros(())
    for step in range(num_steps):
        rng = np.random.default_rng((seed, 7, step))
        labels = [draw_sound(rng, sounds) for _ in range(64)]
        ids, mask = tokenize(tokenizer, [draw_caption(rng, sounds[label]) for label in labels])
        states = encode_text(encoder, ids, mask.long())
        pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        loss = F.cross_entropy(head(pooled), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.01:
            break
    return float(loss.detach())


def train_diffusion(
    config: EzAudioConfig,
    bank: LatentBank,
    sounds: list[Sound],
    tokenizer: Tokenizer,
    path: Path,
    minutes: float,
    publish: Callable[[Arrays], None],
    learning_rate: float = 1e-3,
    bf16: bool = True,
    seed: int = 0,
) -> None:
    """Train (or resume from `path`); `publish` receives the averaged weights every 500 steps and at the end."""
    torch.manual_seed(seed)
    model = TextToLatents(config)
    state = TrainState(model, learning_rate, ema_decay=0.9985, warmup_steps=300)
    if path.is_file():
        state.load(path)
    else:
        start_as_pass_through(model.dit, torch.Generator().manual_seed(seed))
        pretrain_text(model.text_encoder, tokenizer, sounds, seed=seed)
        state.reset_average()
    table = torch.from_numpy(alphas_cumprod(config.diffusion)).float()
    running = None
    for progress, bar in state.steps(minutes, path, "diffusion"):
        batch = draw_batch((seed, 4, state.step), bank, sounds, tokenizer)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = velocity_loss(model, batch, table)
        state.apply(loss, progress)
        value = float(loss.detach())
        running = value if running is None else running + 0.02 * (value - running)
        if state.step % 20 == 0:
            bar.set_postfix(loss=f"{running:.4f}")
        if state.step % 500 == 0:
            publish(state.average)
    publish(state.average)
