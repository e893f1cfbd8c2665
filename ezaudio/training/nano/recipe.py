"""Train the packaged model `nano` from nothing.

    ezaudio-train nano FOLDER --recordings RECORDINGS

leaves `config.json`, `dit.safetensors`, `vae.safetensors`, `text_encoder.safetensors`, `tokenizer.json` and
`spiece.model` in FOLDER; its subfolder `training` holds what a stopped run resumes from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ezaudio.config import EzAudioConfig, preset
from ezaudio.data.clips import all_sounds
from ezaudio.data.synthesis import Sound
from ezaudio.data.tokenizer import write_tokenizer
from ezaudio.runtime.errors import InputError
from ezaudio.training.checkpoint import Arrays
from ezaudio.training.nano.diffusion import train_diffusion
from ezaudio.training.nano.latents import encode_bank
from ezaudio.training.nano.vae import refine_decoder, train_vae
from ezaudio.vae import AutoencoderOobleck
from ezaudio.weights import save_atomic

STAGES = ("vae", "decoder", "latents", "dit")
MINUTES = {"vae": 20.0, "decoder": 10.0, "latents": 0.0, "dit": 90.0}


def run_stage(
    stage: str,
    config: EzAudioConfig,
    sounds: list[Sound],
    folder: Path,
    minutes: float,
    clips_per_sound: int,
    bf16: bool,
) -> None:
    """One of `STAGES`; each reads what the one before wrote to `folder`."""
    work = folder / "training"
    if stage == "vae":
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        write_tokenizer(folder, config.text.vocab_size)
        vae = train_vae(config.vae, sounds, work / "vae.safetensors", minutes)
        save_atomic(dict(vae.state_dict()), folder / "vae.safetensors")
        return
    if not (folder / "vae.safetensors").is_file():
        raise FileNotFoundError(f"no {folder / 'vae.safetensors'}: run --stage vae first")
    vae = AutoencoderOobleck(config.vae)
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    if stage == "decoder":
        refine_decoder(vae, sounds, work / "decoder.safetensors", minutes)
        save_atomic(dict(vae.state_dict()), folder / "vae.safetensors")
        return
    bank = encode_bank(vae.eval(), sounds, work / "latents.safetensors", clips_per_sound)
    if stage == "latents":
        return

    def publish(average: Arrays) -> None:
        for part in ("dit", "text_encoder"):
            weights = {k.removeprefix(f"{part}."): v for k, v in average.items() if k.startswith(f"{part}.")}
            save_atomic(weights, folder / f"{part}.safetensors")

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    train_diffusion(config, bank, sounds, tokenizer, work / "dit.safetensors", minutes, publish, bf16=bf16)


def train_nano(
    folder: Path,
    recordings: Path | None,
    stages: Sequence[str],
    minutes: float | None,
    clips_per_sound: int,
    bf16: bool,
) -> None:
    """Run `stages` one after the other; what a stopped one left is gone on from.

    Args:
        recordings: folder of `ezaudio-data recordings`; None trains on synthesised sounds alone.
        minutes: of each stage; None takes `MINUTES`.
        clips_per_sound: of 10.24 s, encoded once for the last stage.

    Raises: InputError when what a stage needs is missing.
    """
    # Long quiet tails make denormal numbers, which a CPU multiplies a hundred times slower.
    torch.set_flush_denormal(True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sounds = all_sounds(recordings)
        for stage in stages:
            run_stage(stage, preset("nano"), sounds, folder, minutes or MINUTES[stage], clips_per_sound, bf16)
    except FileNotFoundError as error:
        raise InputError(str(error)) from error
