"""`ezaudio-train`: every kind of training on tiny models, killed and resumed, heard and exported."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from console import fails, runner
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ezaudio.checkpoints import open_source
from ezaudio.config import DEBUG
from ezaudio.controlnet import ControlNet
from ezaudio.data.dataset import ManifestDataset, collate
from ezaudio.data.manifest import read_manifest
from ezaudio.data.shards import LatentShards, collate_latents
from ezaudio.dit import MaskDiT
from ezaudio.runtime.errors import BundleError, InputError
from ezaudio.training import checkpoint as checkpoints
from ezaudio.training.autoencoder import AutoencoderTask
from ezaudio.training.encoders import Encoders
from ezaudio.training.journal import read_metrics
from ezaudio.training.latent_diffusion import (
    ControlNetTask,
    LatentDiffusionTask,
    start_controlnet,
    start_cross_attention,
)
from ezaudio.training.settings import (
    STAGES,
    AutoencoderLosses,
    ControlNetStage,
    Optimizer,
    RunSettings,
    Schedule,
)
from ezaudio.training.trainer import Trainer
from ezaudio.vae import AutoencoderOobleck

RATE = 24000
CLIP_S = 0.64


@pytest.fixture(autouse=True)
def _own_accelerator() -> None:
    """accelerate keeps one state a process, precision included."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of a second with captions: tones and noises."""
    folder = tmp_path_factory.mktemp("clips")
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
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    trainer = Trainer(task_of(kind, run, data), run, folder, quiet=True)
    dataset = ManifestDataset(read_manifest(data, "train"), round(run.clip_s * RATE), RATE, run.seed)
    trainer.train(dataset, collate)
    return trainer


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("stage1", "adamw"), ("stage2", "adamw"), ("stage2", "muon"), ("controlnet", "adamw"), ("vae", "adamw")],
)
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(
    kind: str, optimizer: Optimizer, data: Path, tmp_path: Path
) -> None:
    run = settings(num_steps=4, accumulation=2, optimizer=optimizer)
    whole = train(kind, run, data, tmp_path / "whole")
    train(kind, replace(run, num_steps=2), data, tmp_path / "resumed")
    resumed = train(kind, run, data, tmp_path / "resumed")
    assert resumed.step == whole.step == 4
    for name, network in whole.task.networks.items():
        other = checkpoints.weights(resumed.task.networks[name])
        for key, value in checkpoints.weights(network).items():
            assert torch.equal(other[key], value), (name, key)
    assert all(torch.equal(resumed.average[key], value) for key, value in whole.average.items())
    before, after = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "resumed"))
    timed = ("step_s", "clips_per_s")
    plain = [[{k: v for k, v in row.items() if k not in timed} for row in rows] for rows in (before, after)]
    assert plain[0] == plain[1]
    assert [row["step"] for row in before] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["stage1", "stage2", "stage3"])
def test_four_clips_are_learnt(kind: str, data: Path, tmp_path: Path) -> None:
    run = settings(num_steps=120, schedule=Schedule(5e-3, warmup_steps=10), save_every=1000, log_every=2, ema_decay=0.9)
    train(kind, run, data, tmp_path)
    losses = [row["velocity"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    first, last = np.mean(losses[:5]), np.mean(losses[-10:])
    assert last < 0.75 * first  # 0.4 to 0.6 of it


def test_an_autoencoder_learns_with_its_discriminators(data: Path, tmp_path: Path) -> None:
    train("vae", settings(num_steps=20, schedule=Schedule(3e-3), save_every=100, clip_s=0.2), data, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0].keys() >= {"spectrum", "kl", "adversarial", "features", "discriminators"}
    assert np.mean([row["spectrum"] for row in rows[-5:]]) < 0.8 * np.mean([row["spectrum"] for row in rows[:5]])


def test_a_controlnet_starts_as_nothing_and_leaves_its_base_alone(data: Path, tmp_path: Path) -> None:
    run = settings(num_steps=3)
    task = task_of("controlnet", run, data)
    before = {name: value.clone() for name, value in task.dit.state_dict().items()}
    inputs = task.dit.assemble(torch.randn(1, DEBUG.dit.latent_channels, 8))
    context, mask = task.encoders.text(["noise"])
    residuals = task.networks["controlnet"](inputs, torch.tensor([5]), context, mask, torch.rand(1, 1, 16))
    assert all(not residual.any() for residual in residuals)
    trainer = train("controlnet", run, data, tmp_path)
    assert isinstance(trainer.task, ControlNetTask)
    after = trainer.task.dit.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    zero = trainer.task.networks["controlnet"].get_parameter("controlnet_zero_blocks.0.weight")
    assert zero.abs().max() > 0


def test_stage_one_leaves_the_text_alone_and_stage_two_begins_where_it_ended(data: Path, tmp_path: Path) -> None:
    trainer = train("stage1", settings(num_steps=2, schedule=Schedule(1e-2)), data, tmp_path)
    dit = trainer.task.networks["dit"]
    assert isinstance(dit, MaskDiT)
    torch.manual_seed(0)
    fresh = MaskDiT(DEBUG.dit)
    for trained, untouched in zip(dit.text_parameters(), fresh.text_parameters(), strict=True):
        assert torch.equal(trained, untouched)
    start_cross_attention(dit).eval()
    x, t = torch.randn(2, DEBUG.dit.latent_channels, 12), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(dit(x, t, torch.randn(2, 5, DEBUG.text.width)), dit(x, t, None), rtol=0, atol=0)


def test_recomputed_activations_give_the_same_gradients(data: Path) -> None:
    torch.manual_seed(0)
    dit = MaskDiT(DEBUG.dit)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, context = torch.randn(2, 8, 12), torch.tensor([3, 700]), torch.randn(2, 5, DEBUG.text.width)
    gradients = []
    for model in (dit, dit.checkpoint_blocks()):
        model.zero_grad()
        model(x, t, context).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def test_sounds_are_made_to_listen_to(data: Path, tmp_path: Path) -> None:
    for kind in ("stage1", "stage2", "controlnet", "vae"):
        train(kind, settings(num_steps=1, sample_every=1), data, tmp_path / kind)
        sounds = sorted((tmp_path / kind / "samples" / "step-00000001").glob("*.wav"))
        assert sounds
        for path in sounds:
            samples, rate = soundfile.read(path)
            assert rate == RATE
            assert samples.size > 0
            assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / kind / "loss.png").read_bytes().startswith(b"\x89PNG")
        assert list((tmp_path / kind / "tensorboard").glob("events.*"))


def test_other_settings_are_refused_and_free_ones_taken(data: Path, tmp_path: Path) -> None:
    train("stage1", settings(num_steps=2), data, tmp_path)
    with pytest.raises(InputError, match=r"begun with batch_size 4, now 2: give the same again"):
        train("stage1", settings(num_steps=4, batch_size=2), data, tmp_path)
    with pytest.raises(InputError, match=r"begun with stage \{'name': 'stage1'.*, now \{'name': 'stage3'"):
        train("stage3", settings(num_steps=4), data, tmp_path)
    assert train("stage1", settings(num_steps=3, keep=1), data, tmp_path).step == 3
    assert len(checkpoints.stored_checkpoints(tmp_path)) == 1


def command(data: Path, folder: Path, *given: str) -> list[str]:
    common = ["--data", str(data), "--model", "debug", "--random-weights", "--clip-s", str(CLIP_S), "--workers", "0"]
    sizes = ["--batch-size", "4", "--precision", "fp32", "--save-every", "5", "--sample-every", "0"]
    return [str(folder), *common, *sizes, *given]


def test_a_killed_run_loses_at_most_the_last_interval(data: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ezaudio.training", "stage1", *command(data, tmp_path, "--steps", "100000")]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONSAFEPATH": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(checkpoints.stored_checkpoints(tmp_path)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    stored = checkpoints.read_checkpoint(checkpoints.stored_checkpoints(tmp_path)[-1])
    assert stored.step >= 5
    assert rows[-1]["step"] - stored.step <= 10  # logs come every 10 steps, checkpoints every 5
    last = stored.step + 2
    result = runner("ezaudio-train")("stage1", *command(data, tmp_path, "--steps", str(last)))
    assert result.exit_code == 0, result.output
    assert checkpoints.read_checkpoint(checkpoints.stored_checkpoints(tmp_path)[-1]).step == last


def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    given = ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "ezaudio.training", "stage1"]
    arguments = [sys.executable, *launch, *given, *command(data, tmp_path, "--steps", "2", "-q")]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2]  # one process tells, not both
    stored = checkpoints.read_checkpoint(checkpoints.stored_checkpoints(tmp_path)[-1])
    assert stored.step == 2
    assert load_file(tmp_path / "dit.safetensors").keys() == stored.parts["average"].keys()


def test_half_precision_trains_as_single(data: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = train("stage2", settings(num_steps=3, precision=precision), data, tmp_path / precision)
        losses[precision] = [row["velocity"] for row in read_metrics(tmp_path / precision / "metrics.jsonl")]
        assert {value.dtype for value in trainer.task.networks["dit"].parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)  # 3e-3


def test_commands_train_stage_after_stage_to_a_bundle(data: Path, tmp_path: Path) -> None:
    run = runner("ezaudio-train")
    few = ("--steps", "2", "-q")
    for name, given in (
        ("vae", ("--clip-s", "0.2")),
        ("stage1", ()),
        ("stage2", ("--start", str(tmp_path / "stage1"), "--prompt", "noise")),
        ("stage3", ("--start", str(tmp_path / "stage2"), "--min-snr-gamma", "5")),
        ("controlnet", ("--start", str(tmp_path / "stage3"))),
    ):
        result = run(name, *command(data, tmp_path / name, *few, *given))
        assert result.exit_code == 0, (name, result.output)
    published = load_file(tmp_path / "stage3" / "dit.safetensors")
    source = open_source(str(tmp_path / "stage3" / "model"))
    assert all(torch.equal(source.dit().state_dict()[name], value) for name, value in published.items())
    assert open_source(str(tmp_path / "controlnet" / "model"), controlnet="energy").controlnet() is not None
    AutoencoderOobleck(DEBUG.vae).load_state_dict(load_file(tmp_path / "vae" / "vae.safetensors"))


def test_precomputed_latents_take_the_place_of_sounds(data: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    given = (str(data), "-o", str(shards), "--model", "debug", "--random-weights", "--duration", str(CLIP_S))
    made = runner("ezaudio-data")("latents", *given)
    assert made.exit_code == 0, made.output
    task = task_of("stage2", settings(), data)
    batch = collate_latents([LatentShards(shards)[n] for n in range(4)])
    kept = task.encoders(batch, 0.0, torch.Generator().manual_seed(0))
    assert kept.latents.shape == (4, DEBUG.vae.latent_channels, round(CLIP_S * DEBUG.vae.latent_rate))
    spread = (kept.latents - batch.mean) / batch.std
    assert 0.8 < float(spread.std()) < 1.2  # a sample of the posterior
    torch.testing.assert_close(kept.context, batch.text.float())
    emptied = task.encoders(batch, 1.0, torch.Generator().manual_seed(0))
    state, _ = task.encoders.text([""])
    assert emptied.context_mask.sum(1).tolist() == [state.shape[1]] * 4
    for row in emptied.context:
        torch.testing.assert_close(row[: state.shape[1]], state[0])
    result = runner("ezaudio-train")("stage1", *command(shards, tmp_path / "run", "--steps", "2", "-q"))
    assert result.exit_code == 0, result.output
    # A run does not go on with other data.
    fails(
        runner("ezaudio-train")("stage1", *command(data, tmp_path / "run", "--steps", "4")),
        "the run was begun with data",
    )
    fails(
        runner("ezaudio-train")("vae", *command(shards, tmp_path / "vae", "--steps", "1")), "trained on sounds, not on"
    )
    other = command(shards, tmp_path / "other", "--steps", "1")
    other[other.index("debug")] = "nano"
    fails(
        runner("ezaudio-train")("stage1", *other),
        "have 8 channels (they are of random weights, seed 0), 'nano' has 160",
    )


def test_bad_input_is_one_line(data: Path, tmp_path: Path) -> None:
    run = runner("ezaudio-train")
    few = ("--steps", "1")
    fails(run("stage2", *command(data, tmp_path / "a", *few)), "stage2 goes on from stage1: give its run with --start")
    nowhere = ("--start", str(tmp_path / "nowhere"))
    fails(run("stage2", *command(data, tmp_path / "a", *few, *nowhere)), "--start takes a run's folder or a file")
    (tmp_path / "empty").mkdir()
    empty = ("--start", str(tmp_path / "empty"))
    fails(run("stage3", *command(data, tmp_path / "a", *few, *empty)), "is no run: it has neither dit.safetensors")
    fails(run("stage1", *command(tmp_path / "none.csv", tmp_path / "a", *few)), "none.csv")
    fails(run("vae", *command(data, tmp_path / "a", *few, "--clip-s", "0.05")), "clips must be at least 0.11 s")
    if not torch.cuda.is_available():
        fails(run("stage1", *command(data, tmp_path / "a", *few, "--fused")), "--fused needs a GPU")
        fails(run("stage1", *command(data, tmp_path / "a", *few, "--recorded")), "recorded steps need a GPU")
        fails(run("stage1", *command(data, tmp_path / "a", *few, "--precision", "fp16")), "fp16 training needs a GPU")
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_is_never_saved(data: Path, tmp_path: Path) -> None:
    run = settings(num_steps=4, log_every=100, save_every=1)
    trainer = Trainer(task_of("stage1", run, data), run, tmp_path, quiet=True)
    dataset = ManifestDataset(read_manifest(data, "train"), round(run.clip_s * RATE), RATE, run.seed)

    def spoil(batch: Any) -> None:
        if trainer.step == 2:
            batch.audio.fill_(float("nan"))

    with pytest.raises(InputError, match="loss 'velocity' is nan at step 3: lower the learning rate"):
        trainer.train(dataset, collate, spoil)
    assert [path.name for path in checkpoints.stored_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_a_damaged_checkpoint_is_one_line(data: Path, tmp_path: Path) -> None:
    train("stage1", settings(num_steps=2), data, tmp_path)
    (last,) = checkpoints.stored_checkpoints(tmp_path)
    (last / "dit.safetensors").write_bytes(b"torn")
    with pytest.raises(BundleError, match="is damaged"):
        train("stage1", settings(num_steps=3), data, tmp_path)
