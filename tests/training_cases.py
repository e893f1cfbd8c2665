"""Every kind of training on tiny models, for the tests of runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tokenizers import Tokenizer

from ezaudio.checkpoints import open_source
from ezaudio.config import DEBUG
from ezaudio.controlnet import ControlNet
from ezaudio.data.dataset import ManifestDataset, collate
from ezaudio.data.manifest import read_manifest
from ezaudio.dit import MaskDiT
from ezaudio.training.autoencoder import AutoencoderTask
from ezaudio.training.encoders import Encoders
from ezaudio.training.latent_diffusion import ControlNetTask, LatentDiffusionTask, start_controlnet
from ezaudio.training.settings import STAGES, AutoencoderLosses, ControlNetStage, RunSettings, Schedule
from ezaudio.training.trainer import Trainer
from ezaudio.vae import AutoencoderOobleck

RATE = 24000
CLIP_S = 0.64


def forget_accelerator() -> None:
    """accelerate keeps one state a process, precision included."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def captioned_clips(folder: Path) -> Path:
    """A manifest of four clips of a second with captions: tones and noises."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE) / RATE
    clips = {
        "a low tone": np.sin(2 * np.pi * 200 * t),
        "a high tone": np.sin(2 * np.pi * 3000 * t),
        "noise": rng.standard_normal(RATE),
        "clicks": (np.arange(RATE) % 6000 < 40) * rng.standard_normal(RATE),
    }
    rows = []
    for number, (caption, samples) in enumerate(clips.items()):
        soundfile.write(folder / f"{number}.wav", 0.5 * samples / np.abs(samples).max(), RATE)
        rows.append({"audio_path": f"{number}.wav", "caption": caption, "split": "train"})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


def settings(**given: Any) -> RunSettings:
    base = RunSettings(
        num_steps=4,
        schedule=Schedule(1e-3),
        batch_size=4,
        precision="fp32",
        clip_s=CLIP_S,
        log_every=1,
        save_every=2,
        sample_every=0,
    )
    return replace(base, **given)


@torch.no_grad()
def scale_latents(vae: AutoencoderOobleck, clips: torch.Tensor) -> None:
    """Fold the deviation of each channel's latents of `clips` into the encoder's last convolution; posterior 0.1."""
    last, channels = vae.encoder.layers[-1], vae.config.latent_channels
    mean = vae.encode(clips)
    shift, scale = mean.mean(dim=(0, 2)), mean.std(dim=(0, 2))
    last.weight_g[:channels] /= scale[:, None, None]  # type: ignore[index, operator]
    last.bias[:channels] = (last.bias[:channels] - shift) / scale  # type: ignore[index, operator]
    last.weight_g[channels:] = 0  # type: ignore[index, operator]
    last.bias[channels:] = math.log(math.expm1(0.1))  # type: ignore[index, operator]


def encoders(data: Path, with_text: bool = True) -> Encoders:
    """An untrained VAE whose latents of the clips have unit variance, the posterior 0.1; a random text encoder."""
    source = open_source("debug", random_weights=True)
    clips = [soundfile.read(data.parent / f"{n}.wav", 40 * DEBUG.vae.hop, dtype="float32")[0] for n in range(4)]
    torch.manual_seed(0)
    vae = AutoencoderOobleck(DEBUG.vae)
    scale_latents(vae, torch.from_numpy(np.stack(clips))[:, None])
    if not with_text:
        return Encoders(source.config, vae)
    tokenizer = Tokenizer.from_file(str(source.tokenizer_files()["tokenizer.json"]))
    return Encoders(source.config, vae, source.text_encoder(), tokenizer)


def task_of(kind: str, run: RunSettings, data: Path) -> Any:
    torch.manual_seed(0)
    if kind == "vae":
        losses = AutoencoderLosses(filters=2, judged_windows=(320, 80), windows=(640, 160, 40))
        return AutoencoderTask(AutoencoderOobleck(DEBUG.vae), run.schedule, losses)
    if kind == "controlnet":
        dit = open_source("debug", random_weights=True).dit()
        network = start_controlnet(ControlNet(DEBUG.dit, DEBUG.controlnet), dit)
        return ControlNetTask(encoders(data), dit, network, ControlNetStage(), run.schedule)
    stage, dit = STAGES[kind], MaskDiT(DEBUG.dit)
    return LatentDiffusionTask(encoders(data, stage.with_text), dit, stage, run.schedule, ("noise",), CLIP_S)


def train(kind: str, run: RunSettings, data: Path, folder: Path) -> Trainer:
    forget_accelerator()
    trainer = Trainer(task_of(kind, run, data), run, folder, quiet=True)
    dataset = ManifestDataset(read_manifest(data, "train"), round(run.clip_s * RATE), RATE, run.seed)
    trainer.train(dataset, collate)
    return trainer


def command(data: Path, folder: Path, *given: str) -> list[str]:
    common = ["--data", str(data), "--model", "debug", "--random-weights", "--clip-s", str(CLIP_S), "--workers", "0"]
    sizes = ["--batch-size", "4", "--precision", "fp32", "--save-every", "5", "--sample-every", "0"]
    return [str(folder), *common, *sizes, *given]
