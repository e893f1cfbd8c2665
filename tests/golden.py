"""Golden inputs, weights and outputs of the official code, and the tiny systems they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from ezaudio.checkpoints import ModelSource, open_source, save_folder
from ezaudio.config import ControlNetConfig, DiTConfig, EzAudioConfig, TextConfig, VAEConfig
from ezaudio.controlnet import ControlNet
from ezaudio.dit import MaskDiT
from ezaudio.vae import AutoencoderOobleck

FOLDER = Path(__file__).parent / "data" / "golden"

DIT = DiTConfig(latent_channels=16, width=96, depth=4, num_heads=3, context_width=40, adaln_rank=4, adaln_alpha=6)
CONTROLNET = ControlNetConfig(hidden_channels=(8, 16))
VAE = VAEConfig(latent_channels=16, channels=4, channel_multiples=(1, 2, 4, 8), strides=(2, 4, 6, 10))
TEXT = TextConfig(width=40, num_layers=2, num_heads=5, head_width=8, ff_width=64, vocab_size=100)
SYSTEM = EzAudioConfig(name="golden", dit=DIT, vae=VAE, text=TEXT, controlnet=CONTROLNET)


def load(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def settings(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def relative_error(got: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """‖got − expected‖ / ‖expected‖ in float64."""
    a, b = (torch.as_tensor(x).double() for x in (got, expected))
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).norm() / b.norm()).item()


def dit() -> MaskDiT:
    model = MaskDiT(DIT)
    model.load_state_dict(load("dit_tiny"), strict=True)
    return model.eval()


def vae() -> AutoencoderOobleck:
    model = AutoencoderOobleck(VAE)
    model.load_state_dict(load("vae_tiny"), strict=True)
    return model.eval()


def controlnet() -> ControlNet:
    model = ControlNet(DIT, CONTROLNET)
    model.load_state_dict(load("controlnet_tiny"), strict=True)
    return model.eval()


def source(folder: Path) -> ModelSource:
    """The golden models as a folder of weights, the way an own model is exported."""
    text_encoder = T5EncoderModel.from_pretrained(FOLDER / "t5_tiny", attn_implementation="eager").eval()
    tokenizer = open_source("debug", random_weights=True)
    save_folder(folder, SYSTEM, dit(), vae(), text_encoder, tokenizer.tokenizer_files())
    return open_source(str(folder))


def dit_error(dit: nn.Module) -> float:
    """Relative error against the official output."""
    io = load("dit_tiny_io")
    with torch.no_grad():
        out = dit(*(io[f"a.{name}"] for name in ("x", "timesteps", "context", "context_mask")))
    return relative_error(out, io["a.out"])
