"""Training on the `debug` preset: losses fall, and a resumed run repeats an uninterrupted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from console import fails, runner
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ezaudio.config import DEBUG
from ezaudio.data.clips import all_sounds
from ezaudio.data.tokenizer import write_tokenizer
from ezaudio.runtime.solvers import alphas_cumprod
from ezaudio.training.checkpoint import weights
from ezaudio.training.nano import recipe as nano
from ezaudio.training.nano import vae as vae_training
from ezaudio.training.nano.diffusion import (
    TextToLatents,
    draw_batch,
    pretrain_text,
    start_as_pass_through,
    velocity_loss,
)
from ezaudio.training.nano.latents import LatentBank, encode_bank
from ezaudio.training.nano.state import TrainState
from ezaudio.training.nano.vae import draw_audio, initialize, loss_terms, scale_latents, signal_to_error_db
from ezaudio.vae import AutoencoderOobleck

SOUNDS = all_sounds(None)[:20]
HOP = DEBUG.vae.hop


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), DEBUG.text.vocab_size)


@pytest.fixture(scope="module")
def bank() -> LatentBank:
    shape = (2 * len(SOUNDS), DEBUG.dit.latent_channels, 64)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()
    return LatentBank(latents, torch.arange(len(SOUNDS)).repeat(2))


def diffusion_steps(state: TrainState, bank: LatentBank, tokenizer: Tokenizer, count: int) -> list[float]:
    table = torch.from_numpy(alphas_cumprod(DEBUG.diffusion)).float()
    losses = []
    for _ in range(count):
        loss = velocity_loss(state.module, draw_batch((0, state.step), bank, SOUNDS, tokenizer, 256), table)  # type: ignore[arg-type]
        state.apply(loss)
        losses.append(float(loss.detach()))
    return losses


def new_state() -> TrainState:
    torch.manual_seed(0)
    model = TextToLatents(DEBUG)
    start_as_pass_through(model.dit, torch.Generator().manual_seed(0))
    return TrainState(model, learning_rate=3e-3, warmup_steps=5)


def test_diffusion_loss_falls(bank: LatentBank, tokenizer: Tokenizer) -> None:
    constant = LatentBank(bank.latents[:1, :, :1].expand_as(bank.latents), bank.sound)
    losses = diffusion_steps(new_state(), constant, tokenizer, 30)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_resume_repeats_an_uninterrupted_run(bank: LatentBank, tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = new_state()
    diffusion_steps(whole, bank, tokenizer, 3)
    whole.save(tmp_path / "half.safetensors")
    diffusion_steps(whole, bank, tokenizer, 3)
    resumed = new_state()
    resumed.load(tmp_path / "half.safetensors")
    assert resumed.step == 3
    diffusion_steps(resumed, bank, tokenizer, 3)
    assert resumed.step == whole.step
    for name, value in weights(whole.module).items():
        torch.testing.assert_close(weights(resumed.module)[name], value, rtol=0, atol=0)
        torch.testing.assert_close(resumed.average[name], whole.average[name], rtol=0, atol=0)


def test_batches_drop_captions_and_keep_parts(bank: LatentBank, tokenizer: Tokenizer) -> None:
    batches = [draw_batch((1, seed), bank, SOUNDS, tokenizer, 512) for seed in range(60)]
    empty = sum(int((batch.attention_mask.sum(1) == 1).sum()) for batch in batches)
    rows = sum(len(batch.timesteps) for batch in batches)
    assert 0.05 < empty / rows < 0.17
    assert all(0 <= int(batch.timesteps.min()) <= int(batch.timesteps.max()) <= 999 for batch in batches)
    kept = [batch.mask for batch in batches if batch.mask is not None]
    assert kept
    assert all(bool(mask.any(1).all()) and not bool(mask.all()) for mask in kept)


def test_text_encoder_learns_to_name_sounds(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    encoder = TextToLatents(DEBUG).text_encoder
    assert pretrain_text(encoder, tokenizer, SOUNDS, num_steps=150) < 2.0


def test_autoencoder_starts_linear_and_learns() -> None:
    torch.manual_seed(0)
    vae = AutoencoderOobleck(DEBUG.vae)
    audio = draw_audio((0,), SOUNDS, 10, 24 * HOP, HOP)
    initialize(vae, audio, torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = vae.encode(audio)
        start = signal_to_error_db(vae.decode(latents)[:, 0], audio[:, 0])
    assert float(latents.std()) == pytest.approx(1, abs=0.2)
    assert float(start.mean()) > 2
    state = TrainState(vae, learning_rate=1e-3, warmup_steps=1, clip_norm=5.0)
    totals = []
    for _ in range(8):
        loss = torch.stack(list(loss_terms(vae, audio[:4], torch.Generator().manual_seed(0)).values())).sum()
        state.apply(loss)
        totals.append(float(loss.detach()))
    assert totals[-1] < totals[0]


def test_folded_scale_keeps_the_decoding() -> None:
    torch.manual_seed(0)
    vae = AutoencoderOobleck(DEBUG.vae)
    audio = draw_audio((1,), SOUNDS, 8, 24 * HOP, HOP)
    with torch.no_grad():
        before = vae.decode(vae.encode(audio))
        scale_latents(vae, audio)
        latents = vae.encode(audio)
        after = vae.decode(latents)
    torch.testing.assert_close(latents.mean(dim=(0, 2)), torch.zeros(DEBUG.vae.latent_channels), rtol=0, atol=1e-3)
    assert float(latents.var(dim=(0, 2)).mean()) == pytest.approx(1, abs=1e-3)
    # The receptive field of the padded ends differs by the shift.
    inner = slice(14 * HOP, -14 * HOP) if before.shape[2] > 28 * HOP else slice(12 * HOP - 1, 12 * HOP + 1)
    torch.testing.assert_close(after[..., inner], before[..., inner], rtol=1e-3, atol=1e-4)


def test_bank_is_read_back(tmp_path: Path) -> None:
    vae = AutoencoderOobleck(DEBUG.vae)
    path = tmp_path / "latents.safetensors"
    bank = encode_bank(vae, SOUNDS[:2], path, 1)
    again = encode_bank(vae, SOUNDS[:2], path, 1)
    assert bank.sound.tolist() == [0, 1]
    torch.testing.assert_close(bank.latents, again.latents, rtol=0, atol=0)


def test_command_trains_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "preset", lambda name: replace(DEBUG, name=name))
    monkeypatch.setattr(nano, "all_sounds", lambda folder: SOUNDS[:3])
    monkeypatch.setattr(vae_training, "START_CLIPS", 32)
    arguments = [str(tmp_path), "--minutes", "0.01", "--clips-per-sound", "1", "--fp32"]
    result = runner("ezaudio-train")("nano", *arguments)
    assert result.exit_code == 0, result.output
    names = {
        "config.json",
        "dit.safetensors",
        "vae.safetensors",
        "text_encoder.safetensors",
        "tokenizer.json",
        "spiece.model",
    }
    assert names <= {path.name for path in tmp_path.iterdir()}
    model = TextToLatents(DEBUG)
    model.dit.load_state_dict(load_file(tmp_path / "dit.safetensors"))
    stored = load_file(tmp_path / "text_encoder.safetensors")
    assert stored.keys() == weights(model.text_encoder).keys()


def test_command_says_which_stage_is_missing(tmp_path: Path) -> None:
    fails(runner("ezaudio-train")("nano", str(tmp_path), "--stage", "dit"), "run --stage vae first")
