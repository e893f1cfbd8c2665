"""The benchmarks on the debug model: each runs, and refuses to time what is not equal."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import run
from click.testing import Result

SCRIPTS = ("architectures", "cold_start", "denoiser", "memory", "nano_quality", "official", "report")
SCRIPTS += ("sampling", "sounds", "vae")
SHORT = ("--duration", "0.5")

# A checkout of the official code in all that the benchmarks call, around our own modules.
CHECKOUT = {
    "src/models/conditioners.py": """
from torch import nn
from ezaudio.config import DiTConfig
from ezaudio.dit import MaskDiT as Ours

class MaskDiT(nn.Module):
    def __new__(cls, in_chans, out_chans, embed_dim, depth, num_heads, mlp_ratio, context_dim, ada_sola_rank,
                ada_sola_alpha, **others):
        model = Ours(DiTConfig(out_chans, embed_dim, depth, num_heads, context_dim, ada_sola_rank, ada_sola_alpha,
                               mlp_ratio))
        ours = model.forward
        model.forward = lambda x, t, context, context_mask=None, **_: (
            ours(x, t.expand(len(x)), context, context_mask), None)
        return model
""",
    "src/modules/stable_vae/models/autoencoders.py": """
from ezaudio.config import preset
from ezaudio.vae import AutoencoderOobleck

def create_autoencoder_from_config(config):
    return AutoencoderOobleck(preset("debug").vae)
""",
    "src/inference.py": """
import librosa, pandas
import torch
from ezaudio.sampling import guide

def rescale_noise_cfg(guided, conditional, guidance_rescale):
    ratio = conditional.std(dim=(1, 2), keepdim=True) / guided.std(dim=(1, 2), keepdim=True)
    return guidance_rescale * guided * ratio + (1 - guidance_rescale) * guided

def inference(autoencoder, unet, gt, gt_mask, tokenizer, text_encoder, params, scheduler, text, audio_frames,
              guidance_scale, guidance_rescale, ddim_steps, eta, random_seed, device):
    tokens = [tokenizer(t, max_length=100, padding="max_length") for t in (text, [""])]
    states = [text_encoder(input_ids=t.input_ids, attention_mask=t.attention_mask).last_hidden_state for t in tokens]
    context, mask = torch.cat(states), torch.cat([t.attention_mask for t in tokens]).bool()
    generator = torch.Generator().manual_seed(random_seed)
    latents = torch.randn((1, params["model"]["out_chans"], audio_frames), generator=generator)
    scheduler.set_timesteps(ddim_steps)
    for t in scheduler.timesteps:
        velocity, _ = unet(torch.cat([latents, latents]), t, context, context_mask=mask)
        c, u = velocity.chunk(2)
        velocity = rescale_noise_cfg(u + guidance_scale * (c - u), c, guidance_rescale)
        latents = scheduler.step(velocity, t, latents, eta=eta, generator=generator).prev_sample
    return autoencoder(embedding=latents)
""",
    "ckpts/vae/config.json": "{}",
    "ckpts/ezaudio-l.yml": """
model: {mae: true}
diff: {num_train_timesteps: 1000, beta_schedule: scaled_linear, beta_start: 0.00085, beta_end: 0.012,
       prediction_type: v_prediction, rescale_betas_zero_snr: true, timestep_spacing: trailing, clip_sample: false}
""",
}


@pytest.fixture(autouse=True)
def quick(benchmark_scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's floor is measured on little."""
    measure = importlib.import_module("measure")
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "PRODUCT", (8, 64, 64))


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def refuses(result: Result, *parts: str) -> None:
    """One line that says why, and no ratio."""
    assert result.exit_code == 1
    assert "÷" not in result.stdout
    for part in (*parts, "nothing is t"):
        assert part in result.stderr


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes an output of a graph one hundredth larger than it is, in this process."""
    from ezaudio.runtime.session import GraphSessions

    original = GraphSessions.run

    def damage(graph: str, output: str) -> None:
        def run_damaged(self: GraphSessions, name: str, **inputs: Any) -> dict[str, Any]:
            outputs = original(self, name, **inputs)
            return outputs | ({output: outputs[output] * 1.01} if name == graph else {})

        monkeypatch.setattr(GraphSessions, "run", run_damaged)

    return damage


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"python benchmarks/{name}.py" in result.stdout


def test_an_architecture_is_trained_in_a_process_of_its_own(tmp_path: Path) -> None:
    architectures, measure = importlib.import_module("architectures"), importlib.import_module("measure")
    architectures.prepare(tmp_path, clips=16)
    given = {"steps": 20, "width": 32, "depth": 2, "batch": 2}
    row = measure.in_child("architectures", "train", name="pixart-dit", work=str(tmp_path), **given)
    assert row["losses"][-1][0] == 20
    assert 0 < row["final_loss"] < 10
    assert row["training_memory_mib"] > 0
    config = architectures.small(architectures.PRESETS["nano"], 32, 2)
    assert row["parameters"] == architectures.count("pixart-dit", config)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its modules are forgotten afterwards, and the empty ones that stand for what it need not import."""
    before = set(sys.modules)
    for name, text in CHECKOUT.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "checkout"
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "src" or type(sys.modules[name]).__name__ == "_Empty":
            del sys.modules[name]


@pytest.mark.slow
def test_official(debug_bundle: Path, checkout: Path, tmp_path: Path) -> None:
    arguments = ("--official", checkout, "--model", "debug", "--bundle", debug_bundle, "--plain", "--clip-steps", 2)
    result = run("official", *arguments, "--preset", "fast", *SHORT, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    step, decode, clip, preset = rows(tmp_path, "official")
    assert [row["case"] for row in (step, decode, clip, preset)] == ["step", "decode", "clip", "preset"]
    assert {side: len(seconds) for side, seconds in preset["rounds"].items()} == {"official fp32": 1, "ours fp32": 7}
    assert preset["official_over"]["ours fp32"]["median"] > 1
    assert set(step["official_over"]) == {"plain fp32", "ours fp32"}
    assert step["parity"]["ours fp32"]["relative_l2"] < 1e-4  # measured 3e-6
    assert clip["parity"]["ours fp32"]["relative_l2"] < 1e-4  # measured 1e-6
    assert len(step["rounds"]["official fp32"]) == 7
    assert step["hardware"]
    assert step["versions"]["onnxruntime"]


def test_official_refuses_another_velocity(
    debug_bundle: Path, checkout: Path, damaged: Callable[[str, str], None]
) -> None:
    damaged("denoiser", "next_latents")
    arguments = ("--official", checkout, "--model", "debug", "--bundle", debug_bundle)
    refuses(run("official", *arguments, *SHORT), "step of ours fp32")


def test_official_wants_a_checkout(debug_bundle: Path, tmp_path: Path) -> None:
    result = run("official", "--official", tmp_path, "--model", "debug", "--bundle", debug_bundle)
    assert result.exit_code == 1
    assert "is no checkout" in result.stderr


def test_denoiser(debug_bundle: Path, tmp_path: Path) -> None:
    result = run("denoiser", "--model", "debug", "--bundle", debug_bundle, *SHORT, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path, "denoiser")
    assert set(row["over_ours"]) == {"unguided", "unhoisted", "plain"}
    assert all(side["relative_l2"] < 1e-4 for side in row["parity"].values())  # measured 1e-6
    profile = row["profile"]
    assert 0 < profile["products_share"] < 1
    assert sum(profile["operators"].values()) < profile["step_s"]
    # Width 32, MLP ratio 4: the first product of each of three MLPs has 2 · 4 · 32 outputs, in both branches.
    assert sum(p["count"] for p in profile["products"] if p["shape"] == "[2, 25, 32] → [2, 25, 256]") == 3


def test_denoiser_refuses_another_velocity(debug_bundle: Path, damaged: Callable[[str, str], None]) -> None:
    damaged("plain", "velocity")
    refuses(run("denoiser", "--model", "debug", "--bundle", debug_bundle, *SHORT), "step against plain")


def test_denoiser_wants_the_bundle_that_was_named(debug_bundle: Path) -> None:
    result = run("denoiser", "--model", "l", "--bundle", debug_bundle)
    assert result.exit_code == 1
    assert "is debug in fp32, expected l in fp32" in result.stderr


def test_vae(debug_bundle: Path, tmp_path: Path) -> None:
    result = run("vae", "--bundle", debug_bundle, *SHORT, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path, "vae")
    assert set(row["over_whole"]) == {"chunks", "pytorch"}
    memory = row["side_memory_mib"]
    assert memory["pytorch"] > memory["whole"] > 10


def test_vae_refuses_other_samples(debug_bundle: Path, damaged: Callable[[str, str], None]) -> None:
    damaged("decoder", "audio")
    refuses(run("vae", "--bundle", debug_bundle, *SHORT), "whole of 0.5 s")


def test_memory(debug_bundle: Path, tmp_path: Path) -> None:
    result = run("memory", "--bundle", debug_bundle, *SHORT, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    row = rows(tmp_path, "memory")[0]
    assert row["case"] == "usual"
    assert row["peak_memory_mib"] > row["imported_mib"] > 10
    # All but what only editing and the ControlNet use; in fp32 what is stored is used.
    stored = sum(path.stat().st_size for path in debug_bundle.glob("*.weights") if path.stem != "controlnet")
    assert 0.2 * stored < row["weights"]["used"] <= stored
    assert row["weights"]["used"] == row["weights"]["stored"]
    assert row["weights"]["used"] < sum(sizes["used"] for sizes in row["stages"].values())  # the conditioner twice


def test_cold_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cold_start = importlib.import_module("cold_start")
    once = importlib.import_module("measure").interleave
    monkeypatch.setattr(cold_start, "interleave", lambda sides, rounds: once(sides, 1))
    monkeypatch.setattr(cold_start, "FIRST_SOUND", ("--steps", "1", "--duration", "0.5"))
    result = run("cold_start", "--save", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path, "cold_start")
    seconds = {side: value["median"] for side, value in row["seconds"].items()}
    assert seconds["sound"] > seconds["help"] > seconds["python"]
    assert "numpy" in row["imports_ms"]["import ezaudio.runtime.text_to_audio"]


def test_cold_start_refuses_heavy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("cold_start"), "HEAVY", ("json",))
    refuses(run("cold_start"), "the runtime imports json")


def test_sampling(debug_bundle: Path, tmp_path: Path) -> None:
    result = run("sampling", "--bundle", debug_bundle, *SHORT, "--repeats", 2, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path, "sampling")
    assert row["num_steps"] == 4
    clip = row["median"]
    inside = ("text_s", "conditioner_s", "modulation_s", "frame_bias_s")
    assert all(clip[stage] > 0 for stage in inside)
    assert 0 < clip["outside_share"] < 1
    assert sum(clip[stage] for stage in inside) + clip["outside_s"] + clip["decode_s"] < 1.5 * clip["total_s"]


def test_sampling_compares_whole_clips(debug_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ezaudio.runtime.text_to_audio import TextToAudio

    generate = TextToAudio.generate

    def with_preset(self: TextToAudio, *args: Any, preset: str | None = None, **settings: Any) -> Any:
        return generate(self, *args, **settings | ({"num_steps": 1} if preset else {}))

    monkeypatch.setattr(TextToAudio, "generate", with_preset)
    sampling = importlib.import_module("sampling")
    model = TextToAudio(debug_bundle)
    row = sampling.compare(model, "fast", 0.5, 12, 7)
    assert row["official_over_preset"]["median"] > 1
    draws = iter(range(100))
    monkeypatch.setattr(
        TextToAudio, "generate", lambda self, *a, seed, **s: with_preset(self, *a, seed=next(draws), **s)
    )
    with pytest.raises(sampling.click.ClickException, match="different samples: nothing is told"):
        sampling.compare(model, "fast", 0.5, 2, 7)
