"""`ezaudio-train`: every kind of training on tiny models, killed and resumed, heard and exported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from console import fails, runner
from safetensors.torch import load_file
from training_cases import (
    CLIP_S,
    RATE,
    command,
    settings,
    task_of,
    train,
)

from ezaudio.checkpoints import open_source, save_folder
from ezaudio.config import DEBUG
from ezaudio.data.dataset import ManifestDataset, collate
from ezaudio.data.manifest import read_manifest
from ezaudio.data.shards import LatentShards, collate_latents
from ezaudio.dit import MaskDiT
from ezaudio.training import checkpoint as checkpoints
from ezaudio.training.journal import read_metrics
from ezaudio.training.latent_diffusion import (
    ControlNetTask,
    start_cross_attention,
)
from ezaudio.training.settings import (
    Optimizer,
    Schedule,
)
from ezaudio.training.trainer import Trainer
from ezaudio.vae import AutoencoderOobleck

pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("stage1", "adamw"), ("stage2", "adamw"), ("stage2", "muon"), ("controlnet", "adamw"), ("vae", "adamw")],
)
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(
    kind: str, optimizer: Optimizer, clips: Path, tmp_path: Path
) -> None:
    run = settings(num_steps=4, accumulation=2, optimizer=optimizer)
    whole = train(kind, run, clips, tmp_path / "whole")
    train(kind, replace(run, num_steps=2), clips, tmp_path / "resumed")
    resumed = train(kind, run, clips, tmp_path / "resumed")
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
def test_four_clips_are_learnt(kind: str, clips: Path, tmp_path: Path) -> None:
    run = settings(num_steps=120, schedule=Schedule(5e-3, warmup_steps=10), save_every=1000, log_every=2, ema_decay=0.9)
    train(kind, run, clips, tmp_path)
    losses = [row["velocity"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    first, last = np.mean(losses[:5]), np.mean(losses[-10:])
    assert last < 0.75 * first  # 0.4 to 0.6 of it


def test_an_autoencoder_learns_with_its_discriminators(clips: Path, tmp_path: Path) -> None:
    train("vae", settings(num_steps=20, schedule=Schedule(3e-3), save_every=100, clip_s=0.2), clips, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0].keys() >= {"spectrum", "kl", "adversarial", "features", "discriminators"}
    assert np.mean([row["spectrum"] for row in rows[-5:]]) < 0.8 * np.mean([row["spectrum"] for row in rows[:5]])


def test_a_controlnet_starts_as_nothing_and_leaves_its_base_alone(clips: Path, tmp_path: Path) -> None:
    run = settings(num_steps=3)
    task = task_of("controlnet", run, clips)
    before = {name: value.clone() for name, value in task.dit.state_dict().items()}
    inputs = task.dit.assemble(torch.randn(1, DEBUG.dit.latent_channels, 8))
    context, mask = task.encoders.text(["noise"])
    residuals = task.networks["controlnet"](inputs, torch.tensor([5]), context, mask, torch.rand(1, 1, 16))
    assert all(not residual.any() for residual in residuals)
    trainer = train("controlnet", run, clips, tmp_path)
    assert isinstance(trainer.task, ControlNetTask)
    after = trainer.task.dit.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    zero = trainer.task.networks["controlnet"].get_parameter("controlnet_zero_blocks.0.weight")
    assert zero.abs().max() > 0


def test_stage_one_leaves_the_text_alone_and_stage_two_begins_where_it_ended(clips: Path, tmp_path: Path) -> None:
    trainer = train("stage1", settings(num_steps=2, schedule=Schedule(1e-2)), clips, tmp_path)
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


def test_recomputed_activations_give_the_same_gradients(clips: Path) -> None:
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


def test_sounds_are_made_to_listen_to(clips: Path, tmp_path: Path) -> None:
    for kind in ("stage1", "stage2", "controlnet", "vae"):
        train(kind, settings(num_steps=1, sample_every=1), clips, tmp_path / kind)
        sounds = sorted((tmp_path / kind / "samples" / "step-00000001").glob("*.wav"))
        assert sounds
        for path in sounds:
            samples, rate = soundfile.read(path)
            assert rate == RATE
            assert samples.size > 0
            assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / kind / "loss.png").read_bytes().startswith(b"\x89PNG")
        assert list((tmp_path / kind / "tensorboard").glob("events.*"))


def test_a_killed_run_loses_at_most_the_last_interval(clips: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ezaudio.training", "stage1", *command(clips, tmp_path, "--steps", "100000")]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONSAFEPATH": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(checkpoints.stored_checkpoints(tmp_path)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    second = runner("ezaudio-train")("stage1", *command(clips, tmp_path, "--steps", "100000", "--seed", "0", "-q"))
    fails(second, f"another process trains in '{tmp_path}': wait for it, or name another")
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    stored = checkpoints.read_checkpoint(checkpoints.stored_checkpoints(tmp_path)[-1])
    assert stored.step >= 5
    assert rows[-1]["step"] - stored.step <= 10  # logs come every 10 steps, checkpoints every 5
    last = stored.step + 2
    (tmp_path / "checkpoints" / ".step-00000000.1").mkdir()
    result = runner("ezaudio-train")("stage1", *command(clips, tmp_path, "--steps", str(last)))
    assert result.exit_code == 0, result.output
    assert checkpoints.read_checkpoint(checkpoints.stored_checkpoints(tmp_path)[-1]).step == last
    # Half a checkpoint of a killed process, gigabytes of L, is not kept for ever.
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_two_processes_train_one_model(clips: Path, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    given = ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "ezaudio.training", "stage1"]
    arguments = [sys.executable, *launch, *given, *command(clips, tmp_path, "--steps", "2", "-q")]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2]  # one process tells, not both
    stored = checkpoints.read_checkpoint(checkpoints.stored_checkpoints(tmp_path)[-1])
    assert stored.step == 2
    assert load_file(tmp_path / "dit.safetensors").keys() == stored.parts["average"].keys()


def test_half_precision_trains_as_single(clips: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = train("stage2", settings(num_steps=3, precision=precision), clips, tmp_path / precision)
        losses[precision] = [row["velocity"] for row in read_metrics(tmp_path / precision / "metrics.jsonl")]
        assert {value.dtype for value in trainer.task.networks["dit"].parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)  # 3e-3


def test_commands_train_stage_after_stage_to_a_bundle(clips: Path, tmp_path: Path) -> None:
    run = runner("ezaudio-train")
    few = ("--steps", "2", "-q")
    for name, given in (
        ("vae", ("--clip-s", "0.2")),
        ("stage1", ()),
        ("stage2", ("--start", str(tmp_path / "stage1"), "--prompt", "noise")),
        ("stage3", ("--start", str(tmp_path / "stage2"), "--min-snr-gamma", "5")),
        ("controlnet", ("--start", str(tmp_path / "stage3"))),
    ):
        result = run(name, *command(clips, tmp_path / name, *few, *given))
        assert result.exit_code == 0, (name, result.output)
    published = load_file(tmp_path / "stage3" / "dit.safetensors")
    source = open_source(str(tmp_path / "stage3" / "model"))
    assert all(torch.equal(source.dit().state_dict()[name], value) for name, value in published.items())
    controlled = open_source(str(tmp_path / "controlnet" / "model"), controlnet="energy")
    assert controlled.controlnet() is not None
    # With the transformer that it was trained on, and a run that forgets which one that was does not go on.
    assert all(torch.equal(controlled.dit().state_dict()[name], value) for name, value in published.items())
    forgetful = run("controlnet", *command(clips, tmp_path / "controlnet", "--steps", "4"))
    fails(forgetful, "the run was begun with frozen_models")
    AutoencoderOobleck(DEBUG.vae).load_state_dict(load_file(tmp_path / "vae" / "vae.safetensors"))


def test_precomputed_latents_take_the_place_of_sounds(clips: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    given = (str(clips), "-o", str(shards), "--model", "debug", "--random-weights", "--duration", str(CLIP_S))
    made = runner("ezaudio-data")("latents", *given)
    assert made.exit_code == 0, made.output
    task = task_of("stage2", settings(), clips)
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
        runner("ezaudio-train")("stage1", *command(clips, tmp_path / "run", "--steps", "4")),
        "the run was begun with data",
    )
    fails(
        runner("ezaudio-train")("vae", *command(shards, tmp_path / "vae", "--steps", "1")), "trained on sounds, not on"
    )
    save_folder(
        tmp_path / "own",
        DEBUG,
        MaskDiT(DEBUG.dit),
        AutoencoderOobleck(DEBUG.vae),
        task.encoders.text_encoder,
        open_source("debug", random_weights=True).tokenizer_files(),
    )
    own = command(shards, tmp_path / "other", "--steps", "1")
    own[own.index("debug")] = str(tmp_path / "own")
    own.remove("--random-weights")
    fails(runner("ezaudio-train")("stage1", *own), "are of another autoencoder (that of random weights, seed 0) than")
    # The autoencoder may be that of another size, as L's is XL's: their texts are not each other's.
    source = open_source("debug", random_weights=True)
    parts = MaskDiT(DEBUG.dit), source.vae(), open_source("debug", random_weights=True, seed=1).text_encoder()
    save_folder(tmp_path / "told", DEBUG, *parts, source.tokenizer_files())
    own[own.index(str(tmp_path / "own"))] = str(tmp_path / "told")
    fails(runner("ezaudio-train")("stage3", *own), "are of another text encoder (that of random weights, seed 0) than")
    assert runner("ezaudio-train")("stage1", *own, "-q").exit_code == 0
    other = command(shards, tmp_path / "other", "--steps", "1")
    other[other.index("debug")] = "nano"
    fails(
        runner("ezaudio-train")("stage1", *other),
        "have 8 channels (they are of random weights, seed 0), 'nano' has 160",
    )


def test_a_frozen_transformer_computes_in_the_precision_of_the_run(clips: Path, tmp_path: Path) -> None:
    run = settings(num_steps=1, precision="bf16")
    task, seen = task_of("controlnet", run, clips), []
    task.dit.model.in_blocks[0].attn.proj.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    trainer = Trainer(task, run, tmp_path, quiet=True)
    dataset = ManifestDataset(read_manifest(clips, "train"), round(run.clip_s * RATE), RATE, run.seed)
    trainer.train(dataset, collate)
    assert seen[0] == torch.bfloat16
