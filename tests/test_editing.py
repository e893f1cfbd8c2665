"""Editing, control and chunked decoding, through real bundles and against PyTorch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import golden
import numpy as np
import pytest
import torch

from ezaudio.checkpoints import open_source
from ezaudio.config import PRESETS
from ezaudio.controlnet import audio_energy
from ezaudio.runtime.decoding import chunk_bounds, latent_span
from ezaudio.runtime.editing import Window
from ezaudio.runtime.energy import energy_contour
from ezaudio.runtime.errors import CancelledError, InputError
from ezaudio.runtime.noise import TorchNoise
from ezaudio.runtime.solvers import solver_plan
from ezaudio.runtime.text_to_audio import Given, TextToAudio
from ezaudio.sampling import Condition, sample
from ezaudio.text import encode_text

RATE = 24000


@pytest.fixture(scope="module")
def model(debug_bundle: Path) -> TextToAudio:
    return TextToAudio(debug_bundle, threads=2)


def tone(duration_s: float, hertz: float = 440, level: float = 0.3) -> np.ndarray:
    time = np.arange(round(duration_s * RATE)) / RATE
    return (level * (1 + np.sin(7 * time)) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def test_editing_gives_the_official_latents(golden_bundle: Path) -> None:
    io = golden.load("pipeline_tiny_io")
    model = TextToAudio(golden_bundle)
    for text, row in (("the golden prompt", 0), ("", 1)):  # the golden ids belong to no words
        ids = io["input_ids"][row][io["attention_mask"][row].bool()]
        model._conditioning._texts[text] = model._conditioning.encode_ids(tuple(ids.tolist()))
    settings = model.settings(
        "the golden prompt", duration_s=40 / 50, num_steps=10, eta=1.0, guidance_scale=3.5, guidance_rescale=0.0, seed=5
    )
    given = Given(io["edit.gt"].numpy(), io["edit.mask"][:, 0].bool().numpy())
    latents = model._denoise(settings, given, lambda step: None)
    assert golden.relative_error(latents, io["latent.edit_ddim10_eta1_w3.5"]) < 1e-3


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_frames_that_a_sample_depends_on(config) -> None:
    """The spans grow with the chunk, cover it, and reach about 9 frames beyond in the official decoder."""
    hop = config.vae.hop
    first, last = latent_span(100 * hop, 101 * hop, config.vae)
    assert first < 100 < 101 < last
    assert 100 - first <= 10
    assert last - 101 <= 10
    assert latent_span(102 * hop, 103 * hop, config.vae) == (first + 2, last + 2)


def test_spans_hold_exactly_what_matters() -> None:
    """Samples change with the frames at both ends of their span and with none outside."""
    source = open_source("debug", random_weights=True)
    vae, config = source.vae().double(), source.config.vae
    latents = torch.randn(1, config.latent_channels, 60, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    begin, end = 13_001, 13_777
    first, last = latent_span(begin, end, config)
    with torch.no_grad():
        expected = vae.decode(latents)[0, 0, begin:end]
        for frame in range(60):
            changed = latents.clone()
            changed[:, :, frame] += 100
            differs = not torch.equal(vae.decode(changed)[0, 0, begin:end], expected)
            assert differs == (first <= frame < last), frame


def test_chunks_start_short_and_cover_the_clip() -> None:
    bounds = list(chunk_bounds(30 * RATE + 1, RATE))
    assert bounds[0] == (0, RATE // 4)
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert bounds[-1][1] == 30 * RATE + 1
    assert max(end - begin for begin, end in bounds) == 4 * RATE
    assert list(chunk_bounds(5, RATE)) == [(0, 5)]


@pytest.mark.parametrize("duration_s", [0.01, 0.25, 5.3])
def test_chunks_are_the_whole_decode(model: TextToAudio, duration_s: float) -> None:
    options = {"duration_s": duration_s, "num_steps": 2, "seed": 3}
    whole = model.generate(["rain", "wind"], **options).samples
    heard: list[list[np.ndarray]] = [[], []]
    streamed = model.generate(["rain", "wind"], **options, on_audio=lambda item, chunk: heard[item].append(chunk))
    for index, chunks in enumerate(heard):
        assert np.array_equal(np.concatenate(chunks), streamed.samples[index])
    assert len(heard[0]) == len(list(chunk_bounds(whole.shape[1], RATE)))
    assert np.abs(streamed.samples - whole).max() < 1e-5 * np.abs(whole).max()  # measured: 4e-7


def test_listening_can_cancel(model: TextToAudio) -> None:
    with pytest.raises(CancelledError, match="after sample 6000 of 48000"):
        model.generate("rain", duration_s=2.0, num_steps=1, on_audio=lambda item, chunk: False)


def test_a_listener_may_change_what_it_hears(model: TextToAudio) -> None:
    options = {"duration_s": 1.0, "num_steps": 1, "seed": 3}

    def mute(item: int, chunk: np.ndarray) -> None:
        chunk *= 0

    whole = model.generate("rain", **options).samples
    assert np.abs(model.generate("rain", **options, on_audio=mute).samples - whole).max() < 1e-5 * np.abs(whole).max()


def test_window_of_a_region() -> None:
    config = PRESETS["l"]
    window = Window.plan(10 * RATE, 4.0, 6.0, 2.0, config)
    assert (window.begin, window.end) == (3 * RATE, 7 * RATE)  # half the region on each side
    assert (window.first, window.last, window.num_frames) == (50, 150, 200)
    assert window.mask().sum() == 100
    at_start = Window.plan(10 * RATE, 0.0, 1.0, 0.3, config)
    assert (at_start.begin, at_start.first, at_start.last) == (0, 0, 50)
    beyond = Window.plan(RATE, 0.9, 3.0, 2.0, config)
    assert beyond.num_samples == beyond.end == 3 * RATE
    assert beyond.last == beyond.num_frames
    nothing_seen = Window.plan(10 * RATE, 4.0, 6.0, 0.0, config)
    assert nothing_seen.mask().all()


def test_an_edit_leaves_the_rest_alone(model: TextToAudio) -> None:
    clip = tone(3.0)
    options = {"start_s": 1.0, "end_s": 2.0, "seed": 1, "num_steps": 3}
    result = model.edit(clip, "a dog barks", **options)
    edited = result.samples[0]
    fade = round(0.03 * RATE)
    assert edited.shape == clip.shape
    assert np.array_equal(edited[: RATE - fade], clip[: RATE - fade])
    assert np.array_equal(edited[2 * RATE + fade :], clip[2 * RATE + fade :])
    assert not np.array_equal(edited[RATE : 2 * RATE], clip[RATE : 2 * RATE])
    assert result.settings[0].edit.start_s == 1.0
    assert result.settings[0].to_dict()["edit"] == {"start_s": 1.0, "end_s": 2.0, "context_s": 2.0}
    assert model.edit(clip, "a dog barks", **options).samples.tobytes() == result.samples.tobytes()
    louder = model.edit(clip * np.float32(0.5), "a dog barks", **options).samples[0]
    assert golden.relative_error(2 * louder, edited) < 1e-6  # the level of the clip is the level of the edit


def test_an_edit_equals_pytorch(model: TextToAudio) -> None:
    """Encoder, kept frames and decoder against the modules, at a region that starts and ends between frames."""
    clip = tone(2.0)
    window = Window.plan(clip.size, 0.511, 1.333, 0.2, model.config)
    source = open_source("debug", controlnet="energy", random_weights=True)
    encoder, vae = source.text_encoder(), source.vae()
    seen = np.zeros(window.num_frames * 480, np.float32)
    seen[: window.end - window.begin] = clip[window.begin : window.end]
    peak = np.abs(seen).max()
    mask = torch.from_numpy(window.mask())

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([model._conditioning.tokenizer.encode(text).ids])
        return encode_text(encoder, ids, torch.ones_like(ids)), torch.ones_like(ids).bool()

    with torch.no_grad():
        given = vae.encode(torch.from_numpy(seen / peak)[None, None])
        condition = Condition(*encode("a dog"), *encode(""), given=given, mask=mask)
        plan = solver_plan("ddim", 3, 0.0, model.config.diffusion)
        latents = sample(source.dit(), plan, condition, [TorchNoise(9)], window.num_frames, 3.0, 0.5)
        made = vae.decode(latents)[0, 0].numpy() * peak
    result = model.edit(
        clip, "a dog", start_s=0.511, end_s=1.333, context_s=0.2, num_steps=3, guidance_scale=3.0, eta=0.0, seed=9
    )
    region = result.samples[0, window.start : window.stop]
    assert golden.relative_error(region, made[window.start - window.begin : window.stop - window.begin]) < 1e-4


def test_an_edit_past_the_end_continues_the_clip(model: TextToAudio) -> None:
    clip = tone(1.0)
    result = model.edit(clip, "rain", start_s=0.8, end_s=2.5, seed=1, num_steps=2)
    assert result.samples.shape == (1, round(2.5 * RATE))
    assert np.array_equal(result.samples[0, : RATE // 5], clip[: RATE // 5])
    silent = model.edit(np.zeros(100, np.float32), "rain", start_s=0.0, end_s=0.5, seed=1, num_steps=2)
    assert np.abs(silent.samples).max() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start_s": 2.0, "end_s": 1.0}, "must end after it starts, got 2 to 1 s"),
        ({"start_s": -1.0}, "start_s must be from 0 to 3600, got -1.0"),
        ({"end_s": float("nan")}, "end_s must be from 0 to 3600, got nan"),
        ({"context_s": 31.0}, "context_s must be from 0 to 30, got 31.0"),
        ({"end_s": 33.0}, "take 33 s, the model makes at most 30 s"),
        ({"duration_s": 3.0}, "edit has no setting 'duration_s': expected one of eta, guidance_interval"),
        ({"audio": np.zeros((2, 9), np.float32)}, "audio must be mono samples, float"),
        ({"audio": np.zeros(9, np.int16)}, "got int16"),
        ({"audio": np.zeros(0, np.float32)}, "audio has no samples"),
        ({"audio": np.array([np.nan])}, "audio contains NaN"),
        ({"prompt": " "}, "the prompt is blank"),
    ],
)
def test_bad_edits_are_refused(model: TextToAudio, given: dict, message: str) -> None:
    options = {"audio": tone(1.0), "prompt": "rain", "start_s": 0.0, "end_s": 1.0, **given}
    with pytest.raises(InputError, match=message):
        model.edit(options.pop("audio"), options.pop("prompt"), **options)


def test_energy_is_that_of_the_reference() -> None:
    audio = tone(1.0) * np.linspace(0, 1, RATE, dtype=np.float32)
    expected = audio_energy(torch.from_numpy(audio)[None])
    np.testing.assert_allclose(energy_contour(audio, 240), expected.numpy(), atol=2e-6)
    assert not energy_contour(np.zeros(RATE, np.float32), 240).any()


@pytest.mark.parametrize(
    "guidance",
    [{}, {"negative_prompt": "wind and a very loud engine"}, {"guidance_scale": 1.0}],
    ids=["guided", "negative", "unguided"],
)
def test_a_controlled_clip_equals_pytorch(model: TextToAudio, guidance: dict) -> None:
    control = tone(0.7)
    settings = model.settings("a dog barks", duration_s=1.0, num_steps=4, seed=3, control_scale=0.8, **guidance)
    source = open_source("debug", controlnet="energy", random_weights=True)
    encoder = source.text_encoder()

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([model._conditioning.tokenizer.encode(text).ids])
        return encode_text(encoder, ids, torch.ones_like(ids)), torch.ones_like(ids).bool()

    negative = (None, None) if settings.guidance_scale == 1 else encode(settings.negative_prompt)
    heard = torch.zeros(1, RATE)
    heard[0, : control.size] = torch.from_numpy(control)
    condition = Condition(*encode("a dog barks"), *negative, energy=audio_energy(heard))
    plan = solver_plan(settings.solver, 4, settings.eta, model.config.diffusion)
    scale = (settings.guidance_scale, settings.guidance_rescale)
    latents = sample(source.dit(), plan, condition, [TorchNoise(3)], 50, *scale, source.controlnet(), 0.8)
    with torch.no_grad():
        audio = source.vae().decode(latents)[0, 0]
    options = {"duration_s": 1.0, "num_steps": 4, "seed": 3, "control_audio": control, **guidance}
    got = model.generate("a dog barks", control_scale=0.8, **options).samples
    assert golden.relative_error(got[0], audio) < 1e-4
    assert model.generate("a dog barks", control_scale=0.1, **options).samples.tobytes() != got.tobytes()


def test_bad_control_is_refused(model: TextToAudio) -> None:
    with pytest.raises(InputError, match="control_scale must be from 0 to 100, got -1"):
        model.generate("rain", duration_s=0.1, control_audio=tone(0.1), control_scale=-1)
    with pytest.raises(InputError, match=r"control_audio needs a sound of at least 0\.04 s"):
        model.generate("rain", duration_s=0.01, control_audio=tone(0.1))
    with pytest.raises(InputError, match="control_audio must be mono"):
        model.generate("rain", duration_s=0.1, control_audio=np.zeros((2, 50), np.float32))
    with pytest.raises(InputError, match="no ControlNet for control_audio: export one"):
        TextToAudio().generate("rain", duration_s=0.1, control_audio=tone(0.1))
